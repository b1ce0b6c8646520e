"""The work of a run, cut into blocks of rows: who wants which rows, and which are still missing.

In: a plan, a block size in values, and what a stopped run has already written. Out: `Unit`s in the
order of the source files, and for each the `Task`s in it: rows of the unit to be encoded once and
written to certain slots. A block begins at a multiple of every wish's step (whole heads for the Q/K
permutation, 128 rows for FP8 blocks), hence so does every gap that a stopped run left, whatever its
block size was: a task covers exactly a gap. Moves no bytes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from convert.output_tensor import Source
from convert.plan import Encoding, Plan, Slot
from convert.tensor import TensorInfo

Rows = tuple[int, int]
"""First row, and the row after the last."""


@dataclass(frozen=True, slots=True)
class Use:
    """An encoding's interest in a source tensor: rows from `start` to `stop` become output rows."""

    encoding: Encoding
    start: int
    stop: int
    output_row: int


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows `start` to `stop` of one source tensor, read once, and who wants them."""

    info: TensorInfo
    start: int
    stop: int
    uses: tuple[Use, ...]

    @property
    def values(self) -> int:
        """Values in the block."""
        return (self.stop - self.start) * self.info.columns

    @property
    def size_bytes(self) -> int:
        """Bytes of the block as stored."""
        return (self.stop - self.start) * self.info.row_bytes


@dataclass(frozen=True, slots=True)
class Task:
    """Source rows `start` to `stop` become the rows from `output_row` on in each of `slots`."""

    encoding: Encoding
    slots: tuple[Slot, ...]
    start: int
    stop: int
    output_row: int


class Done:
    """The rows of every slot that a stopped run has written and that were found sound.

    `rows` come in ascending order for each slot and do not overlap; adjacent ones are joined, so
    that what is held grows with the number of gaps, not of blocks.
    """

    def __init__(self, rows: Iterable[tuple[tuple[str, int], Rows]] = ()) -> None:
        self._rows: dict[tuple[str, int], list[Rows]] = defaultdict(list)
        for key, (start, stop) in rows:
            joined = self._rows[key]
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            assert not joined or joined[-1][1] < start, (key, joined[-1], start)
            joined.append((start, stop))

    def missing(self, slot: Slot, start: int, stop: int) -> tuple[Rows, ...]:
        """The gaps in output rows `start` to `stop` of a slot."""
        gaps = []
        for first, last in self._rows.get(slot.key, ()):
            if last <= start or first >= stop:
                continue
            if first > start:
                gaps.append((start, first))
            start = last
        return (*gaps, (start, stop)) if start < stop else tuple(gaps)

    def is_whole(self, encoding: Encoding) -> bool:
        """Whether nothing of an encoding is missing anywhere."""
        rows = encoding.tensor.rows
        return not any(self.missing(slot, 0, rows) for slot in encoding.slots)

    def __bool__(self) -> bool:
        return bool(self._rows)


def units(plan: Plan, values: int) -> Iterator[Unit]:
    """Blocks of whole steps of every encoding, in the order of the source files."""
    for info, wanted in _uses(plan):
        for start, stop in row_blocks(info, info.rows, _step(wanted), values):
            yield Unit(info, start, stop, wanted)


def pending(plan: Plan, values: int, done: Done) -> Iterator[Unit]:
    """The units of which something is missing."""
    return (unit for unit in units(plan, values) if not done or any(tasks(unit, done)))


def tasks(unit: Unit, done: Done) -> Iterator[Task]:
    """What is to be encoded from a unit; slots with the same gaps share one task."""
    for use in unit.uses:
        first, last = max(unit.start, use.start), min(unit.stop, use.stop)
        if first >= last:
            continue
        shift = use.output_row - use.start
        alike: dict[tuple[Rows, ...], list[Slot]] = defaultdict(list)
        for slot in use.encoding.slots:
            alike[done.missing(slot, first + shift, last + shift)].append(slot)
        for gaps, slots in alike.items():
            for start, stop in gaps:
                yield Task(use.encoding, tuple(slots), start - shift, stop - shift, start)


def reductions(plan: Plan, done: Done) -> Iterator[tuple[tuple[object, str], list[Encoding]]]:
    """Groups that must be reduced, by their key: those of which anything is missing."""
    groups: dict[tuple[object, str], list[Encoding]] = defaultdict(list)
    for encoding in plan.encodings:
        if encoding.tensor.scheme.needs_reduce:
            groups[encoding.tensor.reduction_key()].append(encoding)
    for key, members in groups.items():
        if not all(done.is_whole(member) for member in members):
            yield key, members


def reduction_sources(members: Iterable[Encoding]) -> tuple[Source, ...]:
    """The rows that a group's reduction reads, each once."""
    return tuple(dict.fromkeys(s for member in members for s in member.tensor.sources))


def reduction_bytes(plan: Plan, done: Done) -> int:
    """Bytes that reductions read."""
    sources = (s for _, members in reductions(plan, done) for s in reduction_sources(members))
    return sum((s.stop - s.start) * s.tensor.row_bytes for s in sources)


def missing_bytes(plan: Plan, values: int, done: Done) -> int:
    """Bytes of the units of which something is missing."""
    return sum(unit.size_bytes for unit in pending(plan, values, done))


def row_blocks(info: TensorInfo, rows: int, step: int, values: int) -> Iterator[Rows]:
    """`rows` rows of `info` in blocks of whole steps, about `values` values each."""
    if not info.columns:  # a header may claim any number of rows that hold nothing
        values = rows
    block = max(values // max(info.columns, 1) // step, 1) * step
    for start in range(0, rows, block):
        yield start, min(start + block, rows)


def least_block(plan: Plan) -> tuple[int, TensorInfo | None]:
    """Rows and tensor of the largest block that cannot be made smaller."""
    # A reduction's blocks have the step of one scheme, which divides the step of all that encode.
    found = [(min(_step(wanted), info.rows), info) for info, wanted in _uses(plan)]
    return max(found, key=lambda block: block[0] * block[1].columns, default=(0, None))


def _uses(plan: Plan) -> Iterator[tuple[TensorInfo, tuple[Use, ...]]]:
    """Who wants the rows of which source tensor."""
    uses: dict[str, tuple[TensorInfo, list[Use]]] = {}
    for encoding in plan.encodings:
        row = 0
        for source in encoding.tensor.sources:
            _, wanted = uses.setdefault(source.tensor.name, (source.tensor, []))
            wanted.append(Use(encoding, source.start, source.stop, row))
            row += source.stop - source.start
    for info, wanted in uses.values():
        yield info, tuple(wanted)


def _step(wanted: Iterable[Use]) -> int:
    return math.lcm(*(use.encoding.tensor.block_rows for use in wanted))
