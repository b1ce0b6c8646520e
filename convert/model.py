"""An opened model: checkpoint, family, recognised tensors, and what its outputs are called.

This is where every verb begins. The name of the outputs is the user's, else the model card's, else
the repository's or the folder's; only the first two are ever written inside a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from convert.cast import Cast
from convert.chat_template import read_templates
from convert.checkpoint import Checkpoint
from convert.errors import InputError, TensorError, UnsupportedError
from convert.families import Family, Tensor, family_of
from convert.gguf import Field
from convert.gguf_plan import GGUFOutput, gguf_outputs, plan_gguf, with_schemes
from convert.hub import Origin, locate
from convert.metadata import model_fields, read_model_card, tokenizer_fields, with_file_type
from convert.plan import PlannedArtifact
from convert.tensor import SOURCE_DTYPES
from convert.tokenizer import read_vocabulary

FLOAT_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""The targets that change form only, and their number in `general.file_type`."""


@dataclass(slots=True)
class Model:
    """A checkpoint opened for work; a context manager that closes it."""

    origin: Origin
    checkpoint: Checkpoint
    family: Family
    tensors: tuple[Tensor, ...]
    name: str
    stated_name: str | None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.checkpoint.close()

    @property
    def parameters(self) -> int:
        """Values in the checkpoint's tensors, those that are dropped left out."""
        return sum(math.prod(t.info.shape) for t in self.tensors if t.rule.gguf is not None)

    def source(self) -> dict[str, Any]:
        """What a sidecar says of the source: names and sizes, no local path."""
        return {
            "name": self.stated_name,
            "repo": self.origin.repo,
            "revision": self.origin.revision,
            "architecture": self.checkpoint.spec.architecture,
            "shards": {shard: stamp[0] for shard, stamp in self.checkpoint.stamps.items()},
        }

    def gguf_outputs(self) -> list[GGUFOutput]:
        """The tensors of a GGUF of this model, in the converter's order."""
        return gguf_outputs(self.checkpoint.spec, self.tensors)

    def gguf_fields(self, file_type: int) -> list[Field]:
        """The header fields of a GGUF of this model, as llama.cpp's converter orders them."""
        spec, folder = self.checkpoint.spec, self.checkpoint.path
        outputs = self.gguf_outputs()
        values = sum(math.prod(output.tensor.shape) for output in outputs)
        fields = model_fields(self.family, spec, folder, name=self.stated_name, parameters=values)
        fields += tokenizer_fields(read_vocabulary(folder, spec), read_templates(folder))
        return with_file_type(fields, file_type)


def open_model(reference: str, name: str | None = None) -> Model:
    """Open the checkpoint at `reference` (folder or hub id) and recognise all its tensors."""
    origin = locate(reference)
    checkpoint = Checkpoint.open(origin.folder, origin.revision)
    spec = checkpoint.spec
    if spec.quantization:
        raise UnsupportedError(
            f"{reference}: already quantized ({spec.quantization}); a 16- or 32-bit checkpoint is"
            " needed"
        )
    family = family_of(spec)
    tensors = family.recognise(spec, checkpoint.tensors)
    for tensor in tensors:
        if tensor.rule.gguf is not None and tensor.info.dtype not in SOURCE_DTYPES:
            raise TensorError(
                f"{tensor.info.name}: dtype {tensor.info.dtype} in {tensor.info.file}; expected one"
                f" of {', '.join(SOURCE_DTYPES)}"
            )
    stated = name or read_model_card(origin.folder).name
    fallback = origin.repo.rpartition("/")[2] if origin.repo else origin.folder.resolve().name
    return Model(origin, checkpoint, family, tensors, _file_name(stated or fallback), stated)


def _file_name(name: str) -> str:
    """A model's name as part of a file name."""
    cleaned = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if not cleaned or len(cleaned.encode()) > 200:
        raise InputError(f"{name!r} cannot be part of a file name; pass --name")
    return cleaned


def plan_float(model: Model, target: str) -> PlannedArtifact:
    """Plan `<name>-<target>.gguf` with every matrix stored as `target` (F32, F16 or BF16)."""
    tensors = with_schemes(model.gguf_outputs(), lambda output: Cast(target))
    fields = model.gguf_fields(FLOAT_FILE_TYPES[target])
    return plan_gguf(f"{model.name}-{target}.gguf", target, fields, tensors)
