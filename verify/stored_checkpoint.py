"""A checkpoint folder as it lies there, opened leniently: what is wrong is recorded, not refused.

`Checkpoint.open` refuses whatever does not add up, which is right for a source and useless for a
lint. Here config.json must be readable and one shard at least; a shard that is not, a tensor that
comes twice, a model of an unknown family are facts of the result. Which files a loader reads is
decided as transformers and vLLM do: those the index names, without an index all of them.

`modules` is the same tensors by module and suffix: `model.layers.0.mlp.up_proj` holds `weight` and
`weight_scale`. `read_items` reads a run of a tensor's values, so that memory is bounded whatever
the tensor. Opens files; judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import CheckpointError, InputError
from convert.families import family_of
from convert.families.rules import Family
from convert.model_spec import ModelSpec, read_json_object, read_model_spec
from convert.safetensors import read_header
from convert.shard_index import INDEX_NAME
from convert.tensor import DTYPES, SOURCE_DTYPES, Array, TensorInfo
from verify.layouts import layout_of, values_each
from verify.quantization import Group, Quantization, read_quantization

CHUNK_BYTES = 1 << 24
Module = Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Index:
    """model.safetensors.index.json: which shard is said to hold what."""

    weight_map: Mapping[str, str]
    total_size: int | None


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A folder's config, index and headers; `again` are tensors whose name another shard has."""

    path: Path
    config: Mapping[str, Any]
    spec: ModelSpec | None
    family: Family | None
    not_understood: str | None
    quantization: Quantization | None
    index: Index | None
    files: tuple[str, ...]
    shards: tuple[str, ...]
    unreadable: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    again: tuple[TensorInfo, ...]
    modules: Mapping[str, Module]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.size_bytes for info in self.tensors.values())

    @property
    def understood(self) -> bool:
        """Whether the layout of everything that config.json calls quantized is known here."""
        quantization = self.quantization
        return quantization is None or (
            not quantization.problems
            and all(layout_of(group) is not None for group in quantization.groups)
        )

    def group_of(self, module: str) -> Group | None:
        """The config group that stores a module."""
        return self.quantization.group_of(module) if self.quantization else None


def open_stored(path: Path) -> StoredCheckpoint:
    """Read config, index and headers. CheckpointError where there is no checkpoint at all."""
    if not path.is_dir():
        what = "is a file" if path.is_file() else "not found"
        raise CheckpointError(f"{path}: {what}; expected a checkpoint folder of safetensors")
    config = read_json_object(path / "config.json")
    files = tuple(sorted(entry.name for entry in path.glob("*.safetensors")))
    index = _read_index(path / INDEX_NAME)
    named = tuple(sorted(set(index.weight_map.values()))) if index else files
    shards = tuple(shard for shard in named if shard in files)
    unreadable: dict[str, str] = {}
    tensors: dict[str, TensorInfo] = {}
    again: list[TensorInfo] = []
    for shard in shards:
        try:
            header = read_header(path / shard, shard)
        except CheckpointError as error:
            unreadable[shard] = str(error).removeprefix(f"{path / shard}: ")
            continue
        again += [info for info in header if info.name in tensors]
        tensors |= {info.name: info for info in header if info.name not in tensors}
    if not tensors:
        why = next(iter(unreadable.values()), "no safetensors file that a loader would read")
        raise CheckpointError(f"{path}: {why}; expected a checkpoint folder of safetensors")
    spec, family, not_understood = _understand(path / "config.json")
    return StoredCheckpoint(
        path=path,
        config=config,
        spec=spec,
        family=family,
        not_understood=not_understood,
        quantization=read_quantization(config),
        index=index,
        files=files,
        shards=shards,
        unreadable=unreadable,
        tensors=tensors,
        again=tuple(again),
        modules=_modules(tensors),
    )


def _read_index(path: Path) -> Index | None:
    if not path.is_file():
        return None
    content = read_json_object(path)
    weight_map, metadata = content.get("weight_map"), content.get("metadata")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: weight_map is missing or empty; expected a shard a tensor")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return Index(
        {str(name): str(shard) for name, shard in weight_map.items()},
        int(total) if isinstance(total, int | float) and math.isfinite(total) else None,
    )


def _understand(path: Path) -> tuple[ModelSpec | None, Family | None, str | None]:
    """The model that config.json describes, as far as this project knows it."""
    spec: ModelSpec | None = None
    try:
        spec = read_model_spec(path)
        return spec, family_of(spec), None
    except InputError as error:
        return spec, None, str(error).removeprefix(f"{path}: ")


def _modules(tensors: Mapping[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        module, _, suffix = name.rpartition(".")
        found.setdefault(module, {})[suffix] = info
    return found


def weight_of(module: Module) -> TensorInfo | None:
    """A module's weight, packed or not."""
    return module.get("weight_packed", module.get("weight"))


def is_quantized(module: Module) -> bool:
    """Whether a module's weight is stored in fewer than 16 bits a value."""
    weight = weight_of(module)
    return "weight_packed" in module or (
        weight is not None and weight.dtype not in (*SOURCE_DTYPES, "F64")
    )


def matrix_shape(weight: TensorInfo, group: Group) -> tuple[int, int] | None:
    """(out, in) of the matrix a stored weight stands for; None if it is no matrix."""
    layout = layout_of(group)
    if layout is None or len(weight.shape) != 2:
        return None
    return weight.shape[0], weight.shape[1] * values_each(layout, group)


def read_items(path: Path, info: TensorInfo, start: int, stop: int) -> Array:
    """Values `start` to `stop` of a tensor, counted row by row, as stored."""
    dtype = np.dtype(DTYPES[info.dtype].storage)
    try:
        found: Array = np.fromfile(
            path / info.file, dtype, stop - start, offset=info.offset + start * dtype.itemsize
        )
    except OSError as error:
        raise CheckpointError(f"{path / info.file}: read error: {error.strerror}") from error
    if found.size != stop - start:
        raise CheckpointError(f"{path / info.file}: ends inside {info.name!r}; it was cut")
    return found


def chunks(info: TensorInfo, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, int]]:
    """Runs (start, stop) that cover a tensor, of whole rows where a row fits."""
    count = math.prod(info.shape)
    step = max(chunk_bytes // DTYPES[info.dtype].itemsize, 1)
    if info.columns and info.columns <= step:
        step -= step % info.columns
    for start in range(0, count, step):
        yield start, min(start + step, count)
