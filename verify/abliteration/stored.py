"""One tensor of an artifact by its Hugging Face name: its bytes, and the values they stand for.

In: a GGUF, a compressed-tensors folder of a scheme that this project writes, or a checkpoint. Out:
bytes, float32 values, and what other values would be in the same type. Values come in the order the
artifact has them: only rows of Q and K in a GGUF are in another than the source's. A whole matrix
is held at a time: the largest of a 405B model takes 3.5 GB in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, UnsupportedError
from convert.families import family_of
from convert.gguf_plan import gguf_outputs
from convert.gguf_reader import GGUFFile, read_gguf
from convert.output_tensor import OutputTensor, Part, Scheme
from convert.tensor import DTYPES, Block, Float32, TensorInfo, round_to
from quantize.compressed_table import KNOWN, ONESHOT
from quantize.ggml import Ggml
from quantize.scaled import NUMERICS
from verify.artifact import Artifact, Kind

_MARKS = ("_packed", "_scale", "_shape", "_global_scale", "")


@dataclass(slots=True)
class StoredTensors:
    """An opened artifact; `base` is the checkpoint it was made from, edited or not."""

    artifact: Artifact
    base: Checkpoint
    gguf: GGUFFile | None = None
    folder: Checkpoint | None = None
    _outputs: dict[str, OutputTensor] = field(default_factory=dict)

    def held(self) -> list[str]:
        """Everything the artifact holds, by its own names and in its own order."""
        return list(self.gguf.tensors if self.gguf is not None else self.folder_tensors)

    def parts_of(self, name: str) -> list[str]:
        """What stands for one of the base's tensors, by the artifact's own names."""
        if self.gguf is not None:
            return [self._outputs[name].name] if name in self._outputs else []
        return [info.name for info in self._parts(name)]

    def sha256(self, held: str) -> str:
        """Of the form and the bytes of something the artifact holds."""
        if self.gguf is not None:
            there = self.gguf.tensors[held]
            digest = hashlib.sha256(repr((there.ggml_type, there.shape)).encode())
            digest.update(self.gguf.read(held))
            return digest.hexdigest()
        info = self.folder_tensors[held]
        digest = hashlib.sha256(repr((info.dtype, info.shape)).encode())
        digest.update(self._raw(info).data)
        return digest.hexdigest()

    @property
    def folder_tensors(self) -> Mapping[str, TensorInfo]:
        """What a folder's headers list."""
        return self.folder.tensors if self.folder is not None else {}

    def values(self, name: str) -> Float32:
        """(rows, columns) as stored."""
        scheme, stored = self._stored(name)
        info = self.base.tensors[name]
        shape = (info.rows, info.columns)
        return np.asarray(scheme.decode(stored, shape)).reshape(shape)

    def rounded(self, name: str, values: Float32) -> Float32:
        """What storing these values in the tensor's own type makes of them, encoded by us."""
        scheme, _ = self._stored(name)
        info = self.base.tensors[name]
        block = Block(name, info.dtype, 0, round_to(values, info.dtype))
        state = scheme.reduce(None, block) if scheme.needs_reduce else None
        parts = [np.ascontiguousarray(p) for p in scheme.encode(block, state, None).parts]
        raw = [part.reshape(-1).view(np.uint8) for part in parts]
        return np.asarray(scheme.decode(raw, values.shape)).reshape(values.shape)

    def _stored(self, name: str) -> tuple[Scheme, list[np.ndarray]]:
        """The scheme that a tensor is stored by, and the bytes of its parts."""
        info = self.base.tensors[name]
        if self.gguf is not None:
            output = self._outputs[name]
            there = self.gguf.tensors.get(output.name)
            if there is None or there.shape != output.shape:
                found = "missing" if there is None else f"of shape {there.shape}"
                raise CheckpointError(
                    f"{self.artifact.name}: {output.name} is {found}; expected {output.shape}, as"
                    " in the source"
                )
            kind = there.ggml_type
            data = np.frombuffer(self.gguf.read(output.name), dtype=np.uint8)
            return Cast(kind) if kind in DTYPES else Ggml(kind), [data]
        parts = {part.name: part for part in self._parts(name)}
        if name in parts and parts[name].dtype == info.dtype:
            if parts[name].shape != info.shape:
                raise CheckpointError(
                    f"{self.artifact.name}: {name} is of shape {parts[name].shape}; expected"
                    f" {info.shape}, as in the source"
                )
            return Cast(info.dtype), [self._raw(parts[name])]
        if not parts:
            raise CheckpointError(f"{self.artifact.name}: {name} is missing")
        row = KNOWN.get(self.artifact.type)
        if row is None or self.artifact.type in ONESHOT:
            raise UnsupportedError(
                f"{self.artifact.name}: {self.artifact.type} is no scheme whose codes are read here"
            )
        wrong = []
        for numerics in NUMERICS:  # no file says which; they differ in the dtype of scales
            scheme = row.scheme(self.artifact.type, info.dtype, numerics=numerics)
            wanted = scheme.parts((info.rows, info.columns), info.dtype)
            unlike = [part for part in wanted if not _is_like(parts.get(name + part.suffix), part)]
            if not unlike:
                return scheme, [self._raw(parts[name + part.suffix]) for part in wanted]
            wrong += unlike
        held = parts.get(name + wrong[0].suffix)
        found = f"{held.dtype} {list(held.shape)}" if held else "missing"
        raise CheckpointError(
            f"{self.artifact.name}: {name}{wrong[0].suffix} is {found}; expected {wrong[0].dtype}"
            f" {list(wrong[0].shape)}"
        )

    def _parts(self, name: str) -> list[TensorInfo]:
        """What a folder stores for one tensor: weight, scales, shape."""
        found = (self.folder_tensors.get(name + mark) for mark in _MARKS)
        return [info for info in found if info is not None]

    def _raw(self, info: TensorInfo) -> np.ndarray:
        assert self.folder is not None
        raw = self.folder.read_rows(info, 0, info.rows).raw
        return np.ascontiguousarray(raw).reshape(-1).view(np.uint8)


def _is_like(held: TensorInfo | None, part: Part) -> bool:
    return held is not None and (held.dtype, held.shape) == (part.dtype, part.shape)


@contextmanager
def open_tensors(artifact: Artifact, base: Checkpoint) -> Iterator[StoredTensors]:
    """An artifact's tensors; closed at the end."""
    if artifact.kind is Kind.SERVER:
        raise UnsupportedError(f"{artifact.name}: a served model's weights are out of reach")
    if artifact.kind is not Kind.GGUF:
        with Checkpoint.open(artifact.path) as folder:
            yield StoredTensors(artifact, base, folder=folder)
        return
    tensors = family_of(base.spec).recognise(base.spec, base.tensors)
    outputs = gguf_outputs(base.spec, tensors)
    by_source = {
        output.tensor.sources[0].tensor.name: replace(output.tensor)
        for output in outputs
        if len(output.tensor.sources) == 1
    }
    yield StoredTensors(artifact, base, gguf=read_gguf(artifact.path), _outputs=by_source)
