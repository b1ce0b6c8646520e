"""What is to be verified: a GGUF file, a folder or a served model, told apart without its weights.

In: a path, or the address of an OpenAI-compatible server. Out: an `Artifact`: its kind, which
decides the engine and the checks, and its `type`, the word for how it is stored (`Q4_K_M`,
`FP8_DYNAMIC`, `BF16`), which decides what may be asked of it. A GGUF stores many types; its word is
the published name of its `general.file_type`, if the tensors can be of that mixture, else the type
that holds most values. What a server has stored it does not say: the type is "served".

A path that is neither is bad input. A file that claims to be a GGUF and is broken is an artifact:
it gets the type "unknown" and fails its checks, and the others beside it are still verified.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.checkpoint import Checkpoint
from convert.errors import InputError, UnsupportedError
from convert.gguf import GGML_TYPES
from convert.gguf_reader import GGUFFile, read_gguf
from convert.model_spec import read_json_object
from quantize.compressed_table import KNOWN
from quantize.compressed_tensors import quantization_config
from quantize.mixture_table import MIXTURES
from verify.quantization import COMPRESSED_TENSORS

if TYPE_CHECKING:
    from verify.engines.openai_client import ServedModel

ADDRESS_STARTS = ("http://", "https://")
UNKNOWN = "unknown"
SERVED = "served"
_ARGUMENTS = ("weights", "input_activations")
_DECISIVE = ("num_bits", "type", "strategy", "dynamic", "group_size", "block_structure")


class Kind(StrEnum):
    """What the artifact is as files."""

    GGUF = "gguf"
    COMPRESSED = COMPRESSED_TENSORS
    CHECKPOINT = "checkpoint"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One artifact; `name` is its file's or folder's own name.

    Of a served model, `path` is only the name the server gives it (often the folder it was started
    with), and `size_bytes` is 0.
    """

    path: Path
    kind: Kind
    type: str
    size_bytes: int
    served: ServedModel | None = None

    @property
    def name(self) -> str:
        """The last part of its path; links are not followed, as the hub's cache is made of them."""
        return Path(os.path.abspath(self.path)).name

    def without_address(self, text: str) -> str:
        """Words for a report that others read: a server's address is nobody's business."""
        return text.replace(self.served.url, "the server's ") if self.served else text


def open_artifact(place: Path | str) -> Artifact:
    """Say what lies at a path or address. Raises InputError for what is no artifact at all."""
    if isinstance(place, str) and place.startswith(ADDRESS_STARTS):
        from verify.engines.openai_client import find_model

        served = find_model(place)
        return Artifact(Path(served.model), Kind.SERVER, SERVED, 0, served)
    path = _first_of_split(Path(place))
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path}: not a .gguf file; expected a GGUF or a model folder")
        return _open_gguf(path)
    if not (path / "config.json").is_file():
        what = "has no config.json" if path.is_dir() else "not found"
        raise InputError(f"{path}: {what}; expected a GGUF file or a model folder")
    size = sum(entry.stat().st_size for entry in path.glob("*.safetensors"))
    stated = read_json_object(path / "config.json").get("quantization_config")
    if stated is None:
        return Artifact(path, Kind.CHECKPOINT, _checkpoint_type(path), size)
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    if method != Kind.COMPRESSED:
        raise UnsupportedError(
            f"{path}: quantized by {method!r}; folders of compressed-tensors can be verified"
        )
    return Artifact(path, Kind.COMPRESSED, _scheme_name(stated), size)


def _first_of_split(path: Path) -> Path:
    """Of a folder that holds one split GGUF and no config.json, its first file."""
    if not path.is_dir() or (path / "config.json").exists():
        return path
    found = list(path.glob("*-00001-of-*.gguf"))
    return found[0] if len(found) == 1 else path


def _open_gguf(path: Path) -> Artifact:
    try:
        file = read_gguf(path)
    except InputError:
        return Artifact(path, Kind.GGUF, UNKNOWN, path.stat().st_size)
    return Artifact(path, Kind.GGUF, _gguf_type(file), file.size_bytes)


def _gguf_type(file: GGUFFile) -> str:
    """The mixture that the header names, unless a matrix has fewer bits than any of that mixture.

    Tensors with more bits are common (an override, a row that does not divide into blocks) and take
    nothing away.
    """
    stored = _most((t.ggml_type, t.shape) for t in file.tensors.values())
    matrices = {t.ggml_type for t in file.tensors.values() if len(t.shape) > 1}
    number = file.fields.get("general.file_type")
    for mixture in MIXTURES.values():
        if mixture.file_type == number:
            least = min(map(_bits, (mixture.default, *(kind for _, kind, _ in mixture.rules))))
            fits = all(_bits(kind) >= least for kind in matrices)
            return mixture.name if fits and mixture.default in matrices else stored
    return stored


def _bits(ggml_type: str) -> float:
    kind = GGML_TYPES[ggml_type]
    return 8 * kind.block_bytes / kind.block


def _checkpoint_type(path: Path) -> str:
    try:
        with Checkpoint.open(path) as checkpoint:
            return _most((info.dtype, info.shape) for info in checkpoint.tensors.values())
    except InputError:
        return UNKNOWN


def _most(stored: Iterable[tuple[str, tuple[int, ...]]]) -> str:
    """The type that holds most values."""
    counts: Counter[str] = Counter()
    for name, shape in stored:
        counts[name] += math.prod(shape)
    return counts.most_common(1)[0][0] if counts else UNKNOWN


def _scheme_name(config: dict[str, Any]) -> str:
    """Our name for the scheme, whatever its group is called; else the name of the only group."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        return Kind.COMPRESSED.value
    ((name, group),) = groups.items()
    if isinstance(group, dict):
        first = [str(name)] if name in KNOWN else []  # our names tell GPTQ from W4A16
        for target in [*first, *KNOWN]:
            ours = next(iter(quantization_config(target)["config_groups"].values()))
            if all(_same_arguments(group.get(key), ours[key]) for key in _ARGUMENTS):
                return target
    return str(name)


def _same_arguments(theirs: Any, ours: dict[str, Any] | None) -> bool:
    if ours is None or not isinstance(theirs, dict):
        return theirs is None and ours is None
    return all(theirs.get(key) == ours[key] for key in _DECISIVE)
