"""Which tensors there are: against the index, against the architecture, against the predicted size.

The names and shapes that an architecture needs come from the family's rules and config.json. A
quantized matrix is compared by the shape it stands for, not the one it is packed in. The predicted
size is the sum, over those tensors, of what the config's scheme stores of each: weights, scales and
all; it differs from the files where something is in a wider dtype, left over, or quantized unsaid.

Reads headers only.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator

from convert.families.rules import Family
from convert.model_spec import ModelSpec
from convert.shard_index import INDEX_NAME
from convert.tensor import DTYPES, SOURCE_DTYPES, TensorInfo
from verify.layouts import SUFFIXES, Part, layout_of, parts_of, stored_columns
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.quantization import FP8, Group
from verify.stored_checkpoint import (
    Index,
    StoredCheckpoint,
    is_quantized,
    matrix_shape,
    weight_of,
)

_TOLERANCE = 0.01
"""Scales in another dtype than predicted are well below this share; a matrix in 16 bits is not."""
_ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}


def lint_contents(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Shards, index, names, shapes and size."""
    yield from _lint_shards(stored)
    if stored.index is not None:
        yield from _lint_index(stored, stored.index)
    for info in stored.again:
        first = stored.tensors[info.name].file
        yield finding("tensor-twice", info.name, f"in {first} and in {info.file}", "in one shard")
    if stored.spec is None or stored.family is None:
        why = stored.not_understood or "unknown"
        yield finding("model-not-understood", "config.json", why, "a family of docs/models.md")
        return
    if stored.understood:
        yield from _lint_tensors(stored, stored.spec, stored.family)


def _lint_shards(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    for shard, why in stored.unreadable.items():
        yield finding("shard-unreadable", shard, why, "a whole safetensors file")
    if stored.index is None:
        if len(stored.files) > 1:
            found = f"{len(stored.files)} shards without it"
            yield finding("index-missing", INDEX_NAME, found, "the shard of every tensor")
        return
    for shard in sorted(set(stored.index.weight_map.values()) - set(stored.files)):
        count = list(stored.index.weight_map.values()).count(shard)
        yield finding("shard-missing", shard, "nothing", f"a shard of {count} tensors")
    for file in stored.files:
        if file not in stored.shards:
            yield finding("shard-unlisted", file, "not in the index", "shards of the index only")


def _lint_index(stored: StoredCheckpoint, index: Index) -> Iterator[LintFinding]:
    lost = set(index.weight_map.values()) - set(stored.files) | stored.unreadable.keys()
    for name, shard in index.weight_map.items():
        info = stored.tensors.get(name)
        if info is None and shard not in lost:
            yield finding("index-wrong", name, f"{shard} does not hold it", f"in {shard}")
        elif info is not None and info.file != shard and shard not in lost:
            yield finding("index-wrong", name, f"in {info.file}", f"in {shard}, says the index")
    for name, info in stored.tensors.items():
        if name not in index.weight_map:
            yield finding("index-wrong", name, f"in {info.file}", "named by the index")
    total = index.total_size
    if not lost and total is not None and total != stored.size_bytes:
        expected = f"{stored.size_bytes:,}, the sum of the tensors"
        yield finding("index-total-size", f"{INDEX_NAME}: total_size", f"{total:,}", expected)


def _architecture(spec: ModelSpec, family: Family) -> dict[str, tuple[int, ...]]:
    """Every tensor that the architecture may have, and its shape; () where any shape will do."""
    found: dict[str, tuple[int, ...]] = {}
    for rule in family.rules:
        found |= dict(rule.tensors(spec))
    return found


def _lint_tensors(
    stored: StoredCheckpoint, spec: ModelSpec, family: Family
) -> Iterator[LintFinding]:
    possible = _architecture(spec, family)
    required = dict(family.required(spec))
    lost = bool(stored.unreadable) or bool(
        stored.index and set(stored.index.weight_map.values()) - set(stored.files)
    )
    for name in possible:
        packed = f"{name}_packed"
        if name in required and not {name, packed} & stored.tensors.keys() and not lost:
            expected = f"{list(possible[name])}, says {family.name} with config.json"
            yield finding("tensor-missing", name, "nothing", expected)
    for info in stored.tensors.values():
        module, _, suffix = info.name.rpartition(".")
        if suffix in SUFFIXES and suffix != "weight_packed":
            continue  # scales are held against their weight
        name = info.name.removesuffix("_packed")
        if name not in possible:
            expected = f"a tensor of {family.name} with {spec.num_hidden_layers} layers"
            yield finding("tensor-unknown", info.name, f"{info.dtype} in {info.file}", expected)
            continue
        shape = _logical_shape(stored, module, info)
        if shape is not None and possible[name] not in ((), shape):
            expected = f"{list(possible[name])}, says config.json"
            yield finding("tensor-shape", info.name, str(list(shape)), expected)
    if not lost:
        yield from _lint_size(stored, possible, required)


def _logical_shape(
    stored: StoredCheckpoint, module: str, info: TensorInfo
) -> tuple[int, ...] | None:
    """The shape of what a tensor stands for; None where its format is not known."""
    parts = stored.modules[module]
    if weight_of(parts) is not info or not is_quantized(parts):
        return info.shape
    group = stored.group_of(module)
    if info.name.endswith("_packed"):
        return None if group is None else matrix_shape(info, group)
    return info.shape


def _lint_size(
    stored: StoredCheckpoint, possible: dict[str, tuple[int, ...]], required: Container[str]
) -> Iterator[LintFinding]:
    itemsize = _ITEMSIZE.get(str(stored.config.get("torch_dtype") or stored.config.get("dtype")), 2)
    predicted = 0
    for name, shape in possible.items():
        if name in required or name in stored.tensors:
            module, _, suffix = name.rpartition(".")
            group = stored.group_of(module) if suffix == "weight" and len(shape) == 2 else None
            predicted += _predict(shape, group, itemsize)
    found = stored.size_bytes
    if abs(found - predicted) > _TOLERANCE * predicted:
        share = 100 * (found / predicted - 1)
        seen = f"{found:,} bytes of tensors, {share:+.1f} %"
        yield finding("size-off", stored.path.resolve().name, seen, f"{predicted:,} bytes")


def _predict(shape: tuple[int, ...], group: Group | None, itemsize: int) -> int:
    """Bytes of one tensor and what lies beside it."""
    layout = None if group is None else layout_of(group)
    if group is None or layout is None:
        return math.prod(shape) * itemsize
    out, columns = shape

    def part_bytes(part: Part) -> int:
        wide = 4 if group.format == FP8 else itemsize
        size = wide if part.dtypes == SOURCE_DTYPES else DTYPES[part.dtypes[0]].itemsize
        return math.prod(part.shapes[0]) * size if part.required else 0

    item = DTYPES[layout.weight_dtypes[0]].itemsize
    weight = out * stored_columns(layout, group, columns) * item
    return weight + sum(part_bytes(part) for part in parts_of(group, (out, columns)))
