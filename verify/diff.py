"""The verb `diff`: two checkpoints of one layout, tensor by tensor, and what the difference means.

In: two folders, both quantized in the same formats, or both in 16 bits. Out: a `DiffReport`. A
difference is counted in codes, neighbours of the format being one apart, and the verdict is

    identical                 every tensor has the same bytes
    other numerics profile    the scales are equal, and quantized weights at most one code apart:
                              the same weights, rounded elsewhere. compressed-tensors rounds twice
                              on the CPU, once on GPUs from SM90 on; about 3 % of E4M3 codes differ
    ablated                   16 bits: every changed matrix lost one direction (`rank_one.py`)
    other model               anything else

Both are read side by side in runs of bounded size; only matrices of 16-bit checkpoints that differ
are looked at whole. A folder that is broken is refused: `lint` says what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from convert.errors import CheckpointError, InputError
from convert.tensor import SOURCE_DTYPES, TensorInfo
from verify.codes import code_bits, ordered
from verify.layouts import SUFFIXES
from verify.lint.values import OnBytes
from verify.rank_one import look_at_change, summarise
from verify.stored_checkpoint import (
    StoredCheckpoint,
    chunks,
    is_quantized,
    open_stored,
    read_items,
    weight_of,
)

SCHEMA_VERSION = 1
WORST = 10
_SIXTEEN_BITS = "unquantized"
_CHUNK_BYTES = 1 << 20
"""Of each side; as int64 codes, sixteen times as much for packed weights."""


class Relation(StrEnum):
    """What two checkpoints are to each other."""

    IDENTICAL = "identical"
    OTHER_NUMERICS = "other numerics profile"
    ABLATED = "ablated"
    OTHER_MODEL = "other model"


class Kind(StrEnum):
    """What a tensor is to the comparison."""

    CODES = "codes"
    SCALES = "scales"
    PLAIN = "unquantized"


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor of both: values that differ, of how many, and the largest distance in codes.

    `form` says how dtypes or shapes differ; then no value is compared.
    """

    name: str
    kind: Kind
    elements: int
    differing: int
    max_distance: int
    form: str | None = None

    @property
    def equal(self) -> bool:
        """Same dtype, shape and bytes."""
        return self.form is None and not self.differing


@dataclass(frozen=True, slots=True)
class Change:
    """How a 16-bit matrix was changed, as `rank_one.py` sees it, without its direction."""

    name: str
    rank_one: bool
    ablation: bool
    explained: float
    strength: float
    fit: float


@dataclass(frozen=True, slots=True)
class DiffReport:
    """Everything one run of diff saw."""

    a: str
    b: str
    layout: str
    relation: Relation
    reason: str
    tensors: tuple[TensorDiff, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    changes: tuple[Change, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 if they are identical, else 1."""
        return int(self.relation is not Relation.IDENTICAL)

    @property
    def worst(self) -> tuple[TensorDiff, ...]:
        """The tensors that differ most: in form, then by distance, then by share of values."""
        wrong = [tensor for tensor in self.tensors if not tensor.equal]
        wrong.sort(key=lambda t: (t.form is None, -t.max_distance, -t.differing / t.elements))
        return tuple(wrong[:WORST])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def diff(a: Path, b: Path, *, on_progress: OnBytes | None = None) -> DiffReport:
    """Compare the folders `a` and `b`. Raises InputError for layouts that cannot be compared."""
    ours, theirs = _open(a), _open(b)
    layout = _layout(ours)
    if layout != _layout(theirs):
        raise InputError(
            f"{a} is stored as {layout}, {b} as {_layout(theirs)}; diff compares one layout, verify"
            " compares an artifact with its source"
        )
    tensors = tuple(_compare(ours, theirs, on_progress))
    only_in_a = tuple(sorted(ours.tensors.keys() - theirs.tensors.keys()))
    only_in_b = tuple(sorted(theirs.tensors.keys() - ours.tensors.keys()))
    relation, reason = _verdict(tensors, len(only_in_a) + len(only_in_b))
    changes: tuple[Change, ...] = ()
    if relation is Relation.OTHER_MODEL and layout == _SIXTEEN_BITS:
        changes, why = _changes(ours, theirs, tensors)
        whole = len(changes) == sum(not t.equal for t in tensors) and not (only_in_a or only_in_b)
        if changes and whole and all(change.ablation for change in changes):
            relation = Relation.ABLATED
        reason = f"{reason}; {why}" if why else reason
    names = (str(a), str(b)) if a.resolve().name == b.resolve().name else (a.name, b.name)
    return DiffReport(*names, layout, relation, reason, tensors, only_in_a, only_in_b, changes)


def _open(path: Path) -> StoredCheckpoint:
    stored = open_stored(path)
    named = set(stored.index.weight_map.values()) if stored.index else set()
    for shard in sorted(named - set(stored.files)):
        raise CheckpointError(f"{path / shard}: missing, named by the index; see hermes-quant lint")
    for shard, why in stored.unreadable.items():
        raise CheckpointError(f"{path / shard}: {why}; see hermes-quant lint")
    for info in stored.again:
        raise CheckpointError(f"{path}: {info.name} is in two shards; see hermes-quant lint")
    return stored


def _layout(stored: StoredCheckpoint) -> str:
    quantization = stored.quantization
    if quantization is None:
        quantized = any(is_quantized(module) for module in stored.modules.values())
        return "quantized, unsaid by config.json" if quantized else _SIXTEEN_BITS
    schemes = sorted({" ".join(group.scheme) for group in quantization.groups})
    return ", ".join([quantization.method, *schemes])


def _compare(
    ours: StoredCheckpoint, theirs: StoredCheckpoint, on_progress: OnBytes | None
) -> Iterator[TensorDiff]:
    done = 0
    for name, info in ours.tensors.items():
        other = theirs.tensors.get(name)
        if on_progress is not None:
            on_progress(done, ours.size_bytes, name)
        done += info.size_bytes
        if other is None:
            continue
        kind = _kind(ours, info)
        count = math.prod(info.shape)
        if (info.dtype, info.shape) != (other.dtype, other.shape):
            form = f"{info.dtype} {list(info.shape)} / {other.dtype} {list(other.shape)}"
            yield TensorDiff(name, kind, count, count, 0, form)
        else:
            yield _compare_values(ours, theirs, info, other, kind)


def _kind(stored: StoredCheckpoint, info: TensorInfo) -> Kind:
    module, _, suffix = info.name.rpartition(".")
    if is_quantized(stored.modules[module]) and weight_of(stored.modules[module]) is info:
        return Kind.CODES
    return Kind.SCALES if suffix in SUFFIXES else Kind.PLAIN


def _compare_values(
    ours: StoredCheckpoint,
    theirs: StoredCheckpoint,
    info: TensorInfo,
    other: TensorInfo,
    kind: Kind,
) -> TensorDiff:
    group = ours.group_of(info.name.rpartition(".")[0])
    bits = group.num_bits if group else 8
    elements = differing = distance = 0
    for start, stop in chunks(info, _CHUNK_BYTES):
        a = read_items(ours.path, info, start, stop)
        b = read_items(theirs.path, other, start, stop)
        codes, others = code_bits(info, a, bits), code_bits(info, b, bits)
        elements += codes.size
        if (count := int(np.count_nonzero(codes != others))) > 0:
            differing += count
            apart = np.abs(ordered(info, codes) - ordered(info, others))
            distance = max(distance, int(apart.max()))
    return TensorDiff(info.name, kind, elements, differing, distance)


def _changes(
    ours: StoredCheckpoint, theirs: StoredCheckpoint, tensors: tuple[TensorDiff, ...]
) -> tuple[tuple[Change, ...], str]:
    """How each changed matrix was changed, and what they have in common, in words."""
    wrong = [t.name for t in tensors if t.form is None and t.differing]
    infos = [ours.tensors[name] for name in wrong]
    found = [
        look_at_change(ours.path, info, theirs.path, theirs.tensors[info.name])
        for info in infos
        if len(info.shape) == 2 and info.dtype in SOURCE_DTYPES
    ]
    changes = tuple(
        Change(f.name, f.is_rank_one, f.is_ablation, f.explained, f.strength, f.fit) for f in found
    )
    return changes, summarise(found).sentence if found else ""


def _verdict(tensors: tuple[TensorDiff, ...], unpaired: int) -> tuple[Relation, str]:
    """What the differences mean, and the sentence that says why."""
    wrong = [tensor for tensor in tensors if not tensor.equal]
    if not wrong and not unpaired:
        return Relation.IDENTICAL, f"all {len(tensors)} tensors have the same bytes"
    if unpaired:
        return Relation.OTHER_MODEL, f"{unpaired} tensors are in one of them only"
    forms = sum(tensor.form is not None for tensor in wrong)
    if forms:
        return Relation.OTHER_MODEL, f"{forms} tensors differ in dtype or shape"
    for kind, what in ((Kind.SCALES, "scales"), (Kind.PLAIN, "unquantized tensors")):
        count = sum(tensor.kind is kind for tensor in wrong)
        if count:
            return Relation.OTHER_MODEL, f"{count} {what} differ"
    codes = [tensor for tensor in tensors if tensor.kind is Kind.CODES]
    farthest = max(tensor.max_distance for tensor in wrong)
    if farthest > 1:
        return Relation.OTHER_MODEL, f"scales are equal, codes are up to {farthest} apart"
    differing = sum(tensor.differing for tensor in codes)
    share = 100 * differing / sum(tensor.elements for tensor in codes)
    reason = f"scales are equal, {differing:,} codes ({share:.2f} %) are one apart"
    return Relation.OTHER_NUMERICS, reason
