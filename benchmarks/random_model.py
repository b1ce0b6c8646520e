"""Checkpoints of real shapes with random weights, for measuring time and memory.

`write_model` makes a Llama checkpoint of a published shape, whole or cut to fewer layers, in bf16
shards of about 2 GB, with the real Llama-3 vocabulary of the data folder. Values come from one pool
of 16 M heavy-tailed normal numbers that each tensor starts reading at another place: no quantizer
can tell, and 6 GB are written in seconds.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.families.llama import LLAMA
from convert.model_spec import ModelSpec, read_model_spec
from convert.safetensors import StoredTensor, layout
from convert.tensor import UInt16, round_to_bf16
from tests.miniature import Shape, config
from tests.vocabularies import DATA, write_llama3

_POOL_VALUES = (1 << 24) - 3
_SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class RealShape:
    """A published model's sizes; `layers` may be fewer than it has."""

    shape: Shape
    tied: bool


SHAPES = {
    "3B": RealShape(Shape(3072, 8192, 28, 24, 8, 128256), True),
    "8B-slice": RealShape(Shape(4096, 14336, 4, 32, 8, 128256), False),
    "405B-slice": RealShape(Shape(16384, 53248, 1, 128, 8, 128256), True),
    "1B-slice": RealShape(Shape(2048, 8192, 6, 32, 8, 128256), True),
}


def write_model(folder: Path, name: str) -> Path:
    """Write the checkpoint `SHAPES[name]` into `folder`, unless it is there already."""
    real = SHAPES[name]
    if (folder / "done").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(real.shape, tied=real.tied)))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 260}))
    if not (DATA / "vocab").is_dir():
        raise SystemExit(
            f"{DATA}: llama.cpp's converter needs a real vocabulary, and none is there"
        )
    write_llama3(folder)
    shards = list(_shards(read_model_spec(folder / "config.json")))
    pool = _pool()
    weight_map = {}
    for number, tensors in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, pool)
        weight_map |= dict.fromkeys((tensor.name for tensor in tensors), file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "done").touch()
    return folder


def _pool() -> UInt16:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(_POOL_VALUES, dtype=np.float32) * np.float32(0.02)
    values[::97] *= np.float32(5)
    return round_to_bf16(values)


def _shards(spec: ModelSpec) -> Iterator[list[StoredTensor]]:
    shard: list[StoredTensor] = []
    for name, shape in LLAMA.required(spec):
        shard.append(StoredTensor(name, "BF16", shape))
        if sum(tensor.size_bytes for tensor in shard) > _SHARD_BYTES:
            yield shard
            shard = []
    if shard:
        yield shard


def _write_shard(path: Path, tensors: list[StoredTensor], pool: UInt16) -> None:
    placed = layout(tensors)
    with path.open("wb") as stream:
        stream.write(placed.header)
        for tensor in sorted(tensors, key=lambda t: placed.offsets[t.name]):
            left, at = math.prod(tensor.shape), zlib.crc32(tensor.name.encode()) % len(pool)
            while left:
                piece = pool[at : at + left]
                stream.write(piece.data)
                left, at = left - len(piece), 0
