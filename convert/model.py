"""An opened model: checkpoint, family, recognised tensors, and what its outputs are called.

This is where every verb begins. The name of the outputs is the user's, else the model card's, else
the repository's or the folder's; only the first two are ever written inside a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from convert.authorship import Authorship, read_authorship
from convert.cast import Cast
from convert.chat_template import read_templates
from convert.checkpoint import Checkpoint
from convert.errors import InputError, TensorError, UnsupportedError
from convert.families import family_of
from convert.families.rules import Family, Tensor
from convert.gguf import Field
from convert.gguf_plan import GGUFOutput, gguf_outputs, plan_gguf, with_schemes
from convert.hub import Origin, locate
from convert.metadata import model_fields, tokenizer_fields
from convert.output_tensor import OutputTensor
from convert.plan import PlannedArtifact
from convert.tensor import SOURCE_DTYPES
from convert.tokenizer import Vocabulary, read_vocabulary
from convert.tokenizer_lints import Lint, lint_tokenizer

FLOAT_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""The targets that change form only, and their number in `general.file_type`."""


@dataclass
class Model:
    """A checkpoint opened for work; a context manager that closes it."""

    origin: Origin
    checkpoint: Checkpoint
    family: Family
    tensors: tuple[Tensor, ...]
    name: str
    authorship: Authorship

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
            "name": self.authorship.name,
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
        fields = model_fields(
            self.family,
            self.checkpoint.spec,
            self.checkpoint.path,
            authorship=self.authorship,
            parameters=sum(_labelled_values(output.tensor) for output in self.gguf_outputs()),
            file_type=file_type,
        )
        return fields + self.tokenizer_fields

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary; one reading serves every target."""
        return read_vocabulary(self.checkpoint.path, self.checkpoint.spec)

    @cached_property
    def tokenizer_fields(self) -> list[Field]:
        """The vocabulary's fields and the chat templates."""
        return tokenizer_fields(self.vocabulary, read_templates(self.checkpoint.path))

    def lints(self) -> tuple[Lint, ...]:
        """What is suspicious about the tokenizer and the templates.

        The vocabulary is looked at only if a target needed it: an FP8 folder copies the tokenizer
        whatever it is.
        """
        vocabulary: Vocabulary | None = self.__dict__.get("vocabulary")
        return lint_tokenizer(self.checkpoint.path, self.checkpoint.spec, vocabulary)


def _labelled_values(tensor: OutputTensor) -> int:
    """Values that count for the size label: of stacked experts, one."""
    stacked = len(tensor.shape) > 2
    return math.prod(tensor.shape[1:] if stacked else tensor.shape)


def open_model(reference: str, name: str | None = None, metadata: Path | None = None) -> Model:
    """Open the checkpoint at `reference` (folder or hub id) and recognise all its tensors."""
    origin = locate(reference)
    checkpoint = Checkpoint.open(origin.folder, origin.revision)
    if checkpoint.spec.quantization:
        raise UnsupportedError(
            f"{reference}: already quantized ({checkpoint.spec.quantization}); a 16- or 32-bit"
            " checkpoint is needed"
        )
    return recognise_model(origin, checkpoint, name, metadata)


def recognise_model(
    origin: Origin, checkpoint: Checkpoint, name: str | None = None, metadata: Path | None = None
) -> Model:
    """The model that `checkpoint` holds; its headers are enough to plan with."""
    spec = checkpoint.spec
    family = family_of(spec)
    tensors = family.recognise(spec, checkpoint.tensors)
    for tensor in tensors:
        if tensor.rule.gguf is not None and tensor.info.dtype not in SOURCE_DTYPES:
            raise TensorError(
                f"{tensor.info.name}: dtype {tensor.info.dtype} in {tensor.info.file}; expected one"
                f" of {', '.join(SOURCE_DTYPES)}"
            )
    authorship = read_authorship(
        origin.folder, name=name, metadata=metadata, repo=origin.repo, revision=origin.revision
    )
    fallback = origin.repo.rpartition("/")[2] if origin.repo else origin.folder.resolve().name
    file_name = _file_name(authorship.name or fallback)
    return Model(origin, checkpoint, family, tensors, file_name, authorship)


def _file_name(name: str) -> str:
    """A model's name as part of a file name."""
    cleaned = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if not cleaned or len(cleaned.encode()) > 200:
        raise InputError(f"{name!r} cannot be part of a file name; pass --name")
    return cleaned


def plan_float(model: Model, target: str, max_file_bytes: int | None = None) -> PlannedArtifact:
    """Plan `<name>-<target>.gguf` with every matrix stored as `target` (F32, F16 or BF16)."""
    tensors = with_schemes(model.gguf_outputs(), lambda output: Cast(target))
    fields = model.gguf_fields(FLOAT_FILE_TYPES[target])
    name = f"{model.name}-{target}"
    return plan_gguf(name, target, fields, tensors, max_file_bytes=max_file_bytes)
