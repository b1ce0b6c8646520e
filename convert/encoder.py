"""Blocks through the schemes: read, checked to be finite, widened once, encoded, written, noted.

In: units of work, from many threads. Each block is read with pread into a buffer that its thread
keeps (mapped pages would count as memory in use), handed to every encoding that wants it, and each
result written to every file that holds it; then the journals are told. Numpy, ggml, reads, writes
and checksums release the interpreter lock. Before a thread reads, it asks the kernel for a block
that will be wanted later, so that the disk works while the threads encode.

What a scheme hands back may be a view of the thread's buffer: it is written before the next read.
A block larger than an ordinary one has a buffer of its own, which goes before its share of the
memory is given back.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.blocks import Done, Task, Unit, reduction_sources, row_blocks, tasks
from convert.checkpoint import Checkpoint
from convert.journal import Journal
from convert.memory import Memory
from convert.output_tensor import Encoded
from convert.plan import Encoding, Plan, Slot, part_spans
from convert.staged_files import DiskErrors, StagedFiles
from convert.tensor import Block, TensorInfo
from convert.workers import Meter

_AHEAD = 2
"""Blocks that a reduction, which one thread makes, asks for ahead of the one it reads."""
Journals = Mapping[str, tuple[Journal, int]]
"""For the path of a file: its artifact's journal, and the file's index in the artifact."""


class Encoder:
    """What the threads of one run share."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        files: StagedFiles,
        journals: Journals,
        memory: Memory,
        values: int,
    ) -> None:
        """`values` are those of an ordinary block."""
        self.checkpoint, self.files, self.journals = checkpoint, files, journals
        self.memory, self.values = memory, values
        self._states: dict[tuple[object, str], Any] = {}
        self._thread = threading.local()

    def reduce(self, key: tuple[object, str], members: list[Encoding], meter: Meter) -> None:
        """Fold every block of a group into the group's state."""
        state, scheme = None, members[0].tensor.scheme
        spans = [
            (source.tensor, source.start + start, source.start + stop)
            for source in reduction_sources(members)
            for start, stop in row_blocks(
                source.tensor, source.stop - source.start, scheme.block_rows, self.values
            )
        ]
        for (info, start, stop), later in zip_longest(spans, spans[_AHEAD:]):
            if later:
                self.checkpoint.will_read(*later)
            with self.memory.taken((stop - start) * info.columns):
                state = scheme.reduce(state, self._read(info, start, stop))
            meter.add((stop - start) * info.row_bytes, f"measuring {info.name}")
        self._states[key] = state

    def encode(self, unit: Unit, later: Unit | None, done: Done, meter: Meter) -> None:
        """Read a unit and write what is missing of it wherever it is wanted.

        `later` is one that will be read soon.
        """
        if later:
            self.checkpoint.will_read(later.info, later.start, later.stop)
        with self.memory.taken(unit.values):
            self._encode(unit, done)
        meter.add(unit.size_bytes, unit.info.name)

    def _encode(self, unit: Unit, done: Done) -> None:
        whole = self._read(unit.info, unit.start, unit.stop)
        permuted: dict[object, Block] = {}
        for task in tasks(unit, done):
            self._store(task, _block_of(task, whole, permuted))

    def write_computed(self, plan: Plan, done: Done) -> None:
        """Write the tensors that come from no checkpoint tensor."""
        for encoding in plan.encodings:
            tensor = encoding.tensor
            missing = tuple(s for s in encoding.slots if done.missing(s, 0, tensor.rows))
            if not tensor.sources and missing:
                raw = np.array(tensor.computed, dtype=np.float32).reshape(tensor.rows, -1)
                task = Task(encoding, missing, 0, tensor.rows, 0)
                self._store(task, Block(tensor.name, "F32", 0, raw))

    def _read(self, info: TensorInfo, start: int, stop: int) -> Block:
        size = (stop - start) * info.row_bytes
        buffer: NDArray[np.uint8] | None = getattr(self._thread, "buffer", None)
        if buffer is None or buffer.size < size:
            buffer = np.empty(size, dtype=np.uint8)
            if (stop - start) * info.columns <= self.values:
                self._thread.buffer = buffer
        block = self.checkpoint.read_rows(info, start, stop, buffer)
        block.check_finite()
        return block

    def _store(self, task: Task, block: Block) -> None:
        """Encode a block, write it to every slot, then tell the journals."""
        tensor, row = task.encoding.tensor, task.output_row
        state = self._states.get(tensor.reduction_key())
        encoded: Encoded = tensor.scheme.encode(block, state, tensor.importance_at(row))
        parts = [_bytes(data) for data in encoded.parts]
        checksum = 0
        for part in parts:
            checksum = zlib.crc32(part, checksum)
        rows = (row, row + task.stop - task.start)
        for slot in task.slots:
            spans = part_spans(tensor, slot.offsets, *rows)
            for part, (offset, size) in zip(parts, spans, strict=True):
                assert len(part) == size, (tensor.name, len(part), size)
                if size:
                    self.files.write(slot.file, part, offset)
            self._note(slot, rows, encoded.changed, checksum)

    def _note(self, slot: Slot, rows: tuple[int, int], changed: int, checksum: int) -> None:
        journal, file = self.journals[slot.file]
        with DiskErrors(self.files.folder / slot.file):
            journal.append(file, slot.index, rows, changed, checksum)


def _block_of(task: Task, whole: Block, permuted: dict[object, Block]) -> Block:
    """The task's rows of a block in output order; a vector (one row) is reordered by its values."""
    block, first = whole, whole.first_row
    if (task.start, task.stop) != (first, first + len(whole.raw)):
        raw = whole.raw[task.start - first : task.stop - first]
        block = Block(whole.name, whole.dtype, task.start, raw)
    tensor = task.encoding.tensor
    if tensor.row_order is None:
        return block
    key = (tensor.row_order, task.start, task.stop)
    if key not in permuted:
        if len(tensor.shape) == 1:
            raw = np.ascontiguousarray(block.raw[:, tensor.row_order.order(block.raw.shape[1])])
            permuted[key] = Block(block.name, block.dtype, block.first_row, raw)
        else:
            permuted[key] = block.permuted(tensor.row_order.order(block.raw.shape[0]))
    return permuted[key]


def _bytes(data: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
