"""A checkpoint that reads as if some of its tensors had been edited: every scheme sees the edit.

In: a checkpoint and, by tensor name, an `Edit`. Out: a `Checkpoint` whose `read_rows` hands out
edited rows, so that whatever is made from it is what would be made from the edited checkpoint on
disk. Tensors that no edit names pass through untouched.

An edit has a scheme's two steps: `reduce` folds all rows of the tensor, in order, into a state;
`apply` changes any block of rows, given that state. `prepare` runs the reduction over the whole
tensor, and once more over the edited rows: what it did and the sha256 before and after are the
tensor's record in the sidecar. That is two reads of each edited tensor beside the one that encodes
it; the plan counts them. The fingerprint covers the edits, so that outputs of other edits are never
taken for these.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convert.blocks import row_blocks
from convert.checkpoint import Checkpoint
from convert.errors import TensorError
from convert.memory import MAX_BLOCK_VALUES, Memory
from convert.tensor import Block, TensorInfo
from convert.workers import Meter

READS = 2
"""How often `prepare` reads a tensor."""


class Edit(Protocol):
    """A change of one tensor's values. Implementations are pure: same rows in, same rows out."""

    @property
    def digest(self) -> str:
        """What identifies it: equal digests change a tensor in the same way."""
        ...

    def reduce(self, state: Any, block: Block) -> Any:
        """Fold the next rows into the state (None at first); the order of rows is the tensor's."""
        ...

    def apply(self, block: Block, state: Any) -> Block:
        """The rows as edited, in their own dtype."""
        ...

    def describe(self, before: Any, after: Any) -> dict[str, Any]:
        """What it did, from the states of the tensor before and after."""
        ...


@dataclass(frozen=True, slots=True)
class Edits:
    """Edits by tensor name, and what sidecars say of where they come from."""

    by_tensor: Mapping[str, Edit]
    recipe: Mapping[str, Any]


@dataclass(slots=True)
class EditedCheckpoint(Checkpoint):
    """See the module's head. `records` says of every prepared tensor what was done to it."""

    edits: Mapping[str, Edit] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _states: dict[str, Any] = field(default_factory=dict)
    _locks: dict[str, threading.Lock] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, edits: Mapping[str, Edit]) -> EditedCheckpoint:
        """The same files, read through `edits`; the original must not be used any more."""
        for name in edits:
            if name not in checkpoint.tensors:
                raise TensorError(f"{name}: the edit names it and {checkpoint.path} has it not")
        edited = cls(
            checkpoint.path,
            checkpoint.spec,
            checkpoint.shards,
            checkpoint.tensors,
            checkpoint.stamps,
            checkpoint.revision,
            checkpoint.beside,
            edits=edits,
        )
        edited._locks = {name: threading.Lock() for name in edits}
        return edited

    def read_rows(
        self, info: TensorInfo, start: int, stop: int, buffer: NDArray[np.uint8] | None = None
    ) -> Block:
        """Rows as edited; the tensor is prepared first if it has not been yet."""
        block = Checkpoint.read_rows(self, info, start, stop, buffer)
        edit = self.edits.get(info.name)
        if edit is None:
            return block
        if info.name not in self._states:
            self.prepare(info, MAX_BLOCK_VALUES)
        return edit.apply(block, self._states[info.name])

    def prepare(
        self,
        info: TensorInfo,
        values: int,
        memory: Memory | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Reduce an edited tensor and write its record, in blocks of about `values` values."""
        edit = self.edits[info.name]
        with self._locks[info.name]:
            if info.name in self._states:
                return
            before, old = self._fold(edit, info, lambda block: block, values, memory, meter)
            after, new = self._fold(
                edit, info, lambda block: edit.apply(block, before), values, memory, meter
            )
            done = edit.describe(before, after)
            self.records[info.name] = {**done, "sha256_before": old, "sha256_after": new}
            self._states[info.name] = before

    def _fold(
        self,
        edit: Edit,
        info: TensorInfo,
        change: Callable[[Block], Block],
        values: int,
        memory: Memory | None,
        meter: Meter | None,
    ) -> tuple[Any, str]:
        """The state of all rows after `change`, and their sha256."""
        state, digest = None, hashlib.sha256()
        free = memory or Memory(1 << 62)
        for start, stop in row_blocks(info, info.rows, 1, values):
            with free.taken((stop - start) * info.columns):
                block = Checkpoint.read_rows(self, info, start, stop)
                block.check_finite()
                changed = change(block)
                digest.update(np.ascontiguousarray(changed.raw).reshape(-1).view(np.uint8).data)
                state = edit.reduce(state, changed)
            if meter is not None:
                meter.add((stop - start) * info.row_bytes, f"editing {info.name}")
        return state, digest.hexdigest()

    def fingerprint(self) -> str:
        """The checkpoint's, and the edits'."""
        digest = hashlib.sha256(Checkpoint.fingerprint(self).encode())
        for name, edit in sorted(self.edits.items()):
            digest.update(f"{name}\n{edit.digest}\n".encode())
        return digest.hexdigest()
