"""What lies at a path: a checkpoint, a GGUF file or a compressed-tensors folder, from headers only.

In: a folder, a `.gguf` file or a hub id. Out: an `Inspection`, plain facts that print as a table or
as JSON. Nothing is judged here; a model of an unknown family is described as far as its files go.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.authorship import read_authorship
from convert.chat_template import CONFIG_NAME, Templates, read_templates
from convert.checkpoint import Checkpoint
from convert.errors import UnsupportedError
from convert.families import family_of
from convert.gguf_reader import GGUFFile, read_gguf
from convert.hub import is_on_disk, locate
from convert.model_spec import ModelSpec, read_json_object
from convert.tensor import TensorInfo

_COMPANIONS = ("_scale", "_shape", "_zero_point", "_g_idx")
"""Ends of the names of what lies beside a quantized weight and is no part of the model."""
_SPECIALS = ("bos", "eos", "pad", "unknown")


@dataclass(frozen=True, slots=True)
class Stored:
    """How much of a model is stored in one dtype or type."""

    type: str
    tensors: int
    values: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The facts of one model on disk; None where the files do not say."""

    kind: str
    name: str | None
    architecture: str
    family: str | None
    quantization: str | None
    parameters: int
    size_bytes: int
    files: int
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    context_length: int
    vocabulary: int
    tied_embeddings: bool
    rope_scaling: str | None
    stored: tuple[Stored, ...]
    special_tokens: dict[str, str]
    chat_templates: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per parameter."""
        return 8 * self.size_bytes / max(self.parameters, 1)


def inspect(reference: str) -> Inspection:
    """Describe what `reference` names."""
    if is_on_disk(reference) and Path(reference).is_file():
        return _inspect_gguf(read_gguf(Path(reference)))
    origin = locate(reference)
    with Checkpoint.open(origin.folder) as checkpoint:
        return _inspect_checkpoint(checkpoint)


def _stored(tensors: Iterable[tuple[str, int, int]]) -> tuple[Stored, ...]:
    """Tensors as (type, values, bytes), summed by type, largest first."""
    sums: dict[str, tuple[int, int, int]] = {}
    for kind, values, size in tensors:
        count, all_values, all_bytes = sums.get(kind, (0, 0, 0))
        sums[kind] = (count + 1, all_values + values, all_bytes + size)
    found = (Stored(kind, *numbers) for kind, numbers in sums.items())
    return tuple(sorted(found, key=lambda stored: -stored.size_bytes))


def _inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    spec, folder = checkpoint.spec, checkpoint.path
    infos = checkpoint.tensors.values()
    templates: Templates = read_templates(folder)
    return Inspection(
        kind=f"{spec.quantization} folder" if spec.quantization else "checkpoint",
        name=read_authorship(folder).name,
        architecture=spec.architecture,
        family=_family(spec),
        quantization=_quantization(folder),
        parameters=_parameters(folder, infos),
        size_bytes=sum(stamp[0] for stamp in checkpoint.stamps.values()),
        files=len(checkpoint.shards),
        layers=spec.num_hidden_layers,
        hidden_size=spec.hidden_size,
        heads=spec.num_attention_heads,
        kv_heads=spec.num_key_value_heads,
        context_length=spec.max_position_embeddings,
        vocabulary=spec.vocab_size,
        tied_embeddings="lm_head.weight" not in checkpoint.tensors,
        rope_scaling="llama3" if spec.rope_scaling else None,
        stored=_stored((info.dtype, math.prod(info.shape), info.size_bytes) for info in infos),
        special_tokens=_special_tokens(folder),
        chat_templates=tuple(templates.effective),
    )


def _family(spec: ModelSpec) -> str | None:
    try:
        return family_of(spec).name
    except UnsupportedError:
        return None


def _quantization(folder: Path) -> str | None:
    config = read_json_object(folder / "config.json").get("quantization_config")
    if not isinstance(config, dict):
        return None
    groups = config.get("config_groups")
    names = ", ".join(groups) if isinstance(groups, dict) else ""
    return " ".join(str(part) for part in (config.get("format"), names) if part)


def _parameters(folder: Path, infos: Iterable[TensorInfo]) -> int:
    """Values of the model itself; a packed word holds as many as its bits allow."""
    config = read_json_object(folder / "config.json").get("quantization_config")
    groups = config.get("config_groups") if isinstance(config, dict) else None
    groups = groups.values() if isinstance(groups, dict) else ()
    schemes = [group.get("weights") for group in groups if isinstance(group, dict)]
    widths = [scheme.get("num_bits") for scheme in schemes if isinstance(scheme, dict)]
    bits = next((width for width in widths if width in (4, 8)), None)
    return sum(
        8 * info.size_bytes // bits
        if bits and info.name.endswith("_packed")
        else math.prod(info.shape)
        for info in infos
        if not info.name.endswith(_COMPANIONS)
    )


def _special_tokens(folder: Path) -> dict[str, str]:
    path = folder / CONFIG_NAME
    config = read_json_object(path) if path.is_file() else {}
    found = {}
    for kind in _SPECIALS:
        token = config.get(f"{'unk' if kind == 'unknown' else kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str):
            found[kind] = text
    return found


def _inspect_gguf(file: GGUFFile) -> Inspection:
    fields = file.fields
    arch = str(fields.get("general.architecture"))

    def size(key: str) -> int:
        value = fields.get(f"{arch}.{key}")
        return value if isinstance(value, int) else 0

    tensors = file.tensors.values()
    name, tokens = fields.get("general.name"), fields.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else []
    weights = [tensor for tensor in tensors if tensor.name != "rope_freqs.weight"]
    stored = _stored((t.ggml_type, math.prod(t.shape), t.size_bytes) for t in tensors)
    return Inspection(
        kind="GGUF file",
        name=name if isinstance(name, str) else None,
        architecture=arch,
        family=arch,
        quantization=stored[0].type if stored else None,
        parameters=sum(math.prod(tensor.shape) for tensor in weights),
        size_bytes=file.size_bytes,
        files=len(file.paths),
        layers=size("block_count"),
        hidden_size=size("embedding_length"),
        heads=size("attention.head_count"),
        kv_heads=size("attention.head_count_kv"),
        context_length=size("context_length"),
        vocabulary=len(tokens),
        tied_embeddings="output.weight" not in file.tensors,
        rope_scaling="llama3" if "rope_freqs.weight" in file.tensors else None,
        stored=stored,
        special_tokens=_gguf_special_tokens(fields, tokens),
        chat_templates=_gguf_templates(fields),
    )


def _gguf_special_tokens(fields: dict[str, Any], tokens: list[Any]) -> dict[str, str]:
    found = {}
    for kind in _SPECIALS:
        key = f"tokenizer.ggml.{'padding' if kind == 'pad' else kind}_token_id"
        identifier = fields.get(key)
        if isinstance(identifier, int) and 0 <= identifier < len(tokens):
            found[kind] = str(tokens[identifier])
    return found


def _gguf_templates(fields: dict[str, Any]) -> tuple[str, ...]:
    prefix = "tokenizer.chat_template"
    named = [key.removeprefix(prefix + ".") for key in fields if key.startswith(prefix + ".")]
    return (*(["default"] if prefix in fields else []), *named)
