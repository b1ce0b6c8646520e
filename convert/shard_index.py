"""Which files hold a checkpoint's weights: by its index, or by what lies there.

In: a checkpoint's folder. Out: the index's map from tensor to shard, the shards' names. What would
make one loader read other weights than another (a shard the index names that is not there, a tensor
the index omits, several files and no index) is a CheckpointError. Reads no shard.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from convert.errors import CheckpointError
from convert.model_spec import read_json_object
from convert.tensor import TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")


def read_index(path: Path) -> dict[str, str]:
    """The index's tensor name -> shard map; empty where there is no index."""
    index = path / INDEX_NAME
    if not index.is_file():
        return {}
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index}: {name!r} is said to be in {shard!r}, not a file name")
        if not os.path.isfile(path / shard):  # Path.is_file raises for a name that is too long
            raise CheckpointError(f"{path / shard}: missing; {index.name} needs it for {name!r}")
        if not shard.endswith(".safetensors"):  # it would be a side file too, copied over its shard
            raise CheckpointError(
                f"{path / shard}: {index.name} needs it for {name!r}; expected a .safetensors file"
            )
    return weight_map


def find_shards(path: Path) -> tuple[str, ...]:
    """Shards of a checkpoint without an index: one model.safetensors, or the only one there is."""
    if (path / SINGLE_NAME).is_file():
        return (SINGLE_NAME,)
    found = sorted(entry.name for entry in path.glob("*.safetensors"))
    if len(found) == 1:
        return tuple(found)
    if found:
        raise CheckpointError(
            f"{path}: {len(found)} safetensors files and no {INDEX_NAME}; the index is missing"
        )
    pickles = sorted(e.name for e in path.iterdir() if e.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{path}: only pickled weights ({pickles[0]}); unpickling runs code, so they are never"
            " loaded. Convert them to safetensors in a sandbox first"
        )
    raise CheckpointError(f"{path}: no {SINGLE_NAME} and no {INDEX_NAME}")


def check_index(
    path: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> None:
    """The index and the headers must tell the same story."""
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{path / shard}: lacks {name!r}, which {INDEX_NAME} promises")
        found = tensors[name].file
        if found != shard:
            raise CheckpointError(
                f"{path / INDEX_NAME}: {name!r} is said to be in {shard}, it is in {found}"
            )
    for name, info in tensors.items():
        if weight_map and name not in weight_map:
            raise CheckpointError(f"{path / info.file}: holds {name!r}, which {INDEX_NAME} omits")
