"""An artifact that exists or could be made, as far as memory is concerned: names, types, sizes.

A `Subject` is a model with all of them.

In: a planned artifact (from the plan pass, so to the byte), a GGUF header, or safetensors headers.
Out: a `Candidate`, whose tensors keep the names of their container, since the engines place memory
by name. Which engine loads it follows from the container: GGUF is llama.cpp's, safetensors vLLM's.
Opens no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from convert.gguf_reader import GGUFFile
from convert.model_spec import ModelSpec
from convert.plan import PlannedArtifact
from convert.tensor import TensorInfo

_LAYER = re.compile(r"(?:blk|model\.layers)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One stored array, scales included, by its name in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def layer(self) -> int | None:
        """The decoder layer it belongs to, if any."""
        match = _LAYER.match(self.name)
        return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """`size_bytes` counts whole files; `exact` says whether headers and vocabulary are in it.

    `place` is where an engine finds it (a path, a hub id, `hf:repository/file`); None where it has
    to be made first.
    """

    name: str
    target: str
    container: str
    size_bytes: int
    tensors: tuple[StoredTensor, ...]
    place: str | None = None
    exact: bool = True
    notes: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def engine(self) -> str:
        """The engine that loads it."""
        return "llama.cpp" if self.container == "gguf" else "vllm"

    @property
    def is_eight_bit(self) -> bool:
        """Whether its matrices are stored as 8-bit floats."""
        weights = (tensor for tensor in self.tensors if tensor.name.endswith(".weight"))
        return any(tensor.dtype == "F8_E4M3" for tensor in weights)


@dataclass(frozen=True, slots=True)
class Subject:
    """`unmodelled` says why attention has no formula; `window` is that of sliding attention."""

    name: str
    reference: str
    spec: ModelSpec
    candidates: tuple[Candidate, ...]
    unmodelled: str | None = None
    window: int | None = None
    kv_scheme: str | None = None
    notes: tuple[str, ...] = ()


def from_plan(planned: PlannedArtifact, *, exact: bool, notes: tuple[str, ...] = ()) -> Candidate:
    """What a run would write."""
    tensors = [
        StoredTensor(
            placed.tensor.name + part.suffix,
            part.dtype,
            part.shape,
            part.size_bytes(placed.tensor.rows),
        )
        for file in planned.files
        for placed in file.tensors
        for part in placed.tensor.parts
    ]
    gguf = any(file.path.endswith(".gguf") for file in planned.files)
    return Candidate(
        name=planned.name,
        target=planned.target,
        container="gguf" if gguf else "safetensors",
        size_bytes=planned.size_bytes,
        tensors=tuple(tensors),
        exact=exact,
        notes=notes,
    )


def from_gguf(
    name: str, target: str, parts: Iterable[tuple[GGUFFile, int]], place: str
) -> Candidate:
    """A GGUF file that exists, or the parts of one that was split, each with its size."""
    listed = list(parts)
    tensors = [
        StoredTensor(tensor.name, tensor.ggml_type, tensor.shape, tensor.size_bytes)
        for file, _ in listed
        for tensor in file.tensors.values()
    ]
    size = sum(size for _, size in listed)
    return Candidate(name, target, "gguf", size, tuple(tensors), place)


def from_safetensors(
    name: str, target: str, infos: Iterable[TensorInfo], size_bytes: int | None, place: str
) -> Candidate:
    """A folder of safetensors at `place`; without `size_bytes` the size is that of the tensors."""
    tensors = tuple(
        StoredTensor(info.name, info.dtype, info.shape, info.size_bytes) for info in infos
    )
    total = sum(tensor.size_bytes for tensor in tensors) if size_bytes is None else size_bytes
    return Candidate(
        name, target, "safetensors", total, tensors, place, exact=size_bytes is not None
    )
