"""How much memory a run may take, and how that decides the size of a block.

In: a number of bytes (`--memory`) and of threads. Out: values per block, and a `Memory` that the
threads take their blocks' share from, so that all of them together stay under the budget: a tensor
whose smallest block is large is worked on by fewer threads at once, not refused. The budget covers
what grows with the work (blocks read, widened, reordered, encoded, and the temporaries of a
kernel); the interpreter, the plan and the vocabulary are not in it. Pages of files that wait in the
kernel's cache are not the process's own and not counted either. Between blocks a thread keeps the
buffer of one ordinary block as stored: over all threads at most a twelfth of the budget (4 of the
48 bytes below), which is not taken off what others may have meanwhile.

`WORKING_BYTES_PER_VALUE` is an upper bound for every scheme; a test measures it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from convert.blocks import least_block
from convert.errors import InputError
from convert.plan import Plan

DEFAULT_MEMORY_BYTES = 1 << 30
WORKING_BYTES_PER_VALUE = 48
"""Memory one value of a block may take: stored, widened, reordered, encoded, temporaries."""
MAX_BLOCK_VALUES = 1 << 20
"""Larger blocks gain nothing and leave the processor's caches."""


def block_values(memory_bytes: int, threads: int) -> int:
    """Values per block so that `threads` blocks fit into the budget."""
    return min(MAX_BLOCK_VALUES, memory_bytes // threads // WORKING_BYTES_PER_VALUE)


def working_memory_bytes(plan: Plan, memory_bytes: int, threads: int) -> int:
    """Upper bound of the memory that blocks take while a run goes on; never above the budget."""
    values = max(block_values(memory_bytes, threads), _least_values(plan))
    return min(memory_bytes, values * threads * WORKING_BYTES_PER_VALUE)


def check_memory(plan: Plan, memory_bytes: int) -> None:
    """Raise InputError where not even the smallest block of some tensor fits into the budget."""
    needed = _least_values(plan) * WORKING_BYTES_PER_VALUE
    if needed > memory_bytes:
        rows, info = least_block(plan)
        assert info is not None
        raise InputError(
            f"--memory: {memory_bytes:,} bytes are too few: the smallest block of {info.name} is"
            f" {rows} rows of {info.columns:,} values and needs {needed:,}; pass --memory"
            f" {-(-needed // (1 << 20))}MiB or more"
        )


def _least_values(plan: Plan) -> int:
    rows, info = least_block(plan)
    return rows * info.columns if info else 0


class Memory:
    """A number of bytes that threads take from and give back; who finds too little waits."""

    def __init__(self, size_bytes: int) -> None:
        self._free = size_bytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, values: int) -> Iterator[None]:
        """Hold what a block of so many values needs."""
        size = values * WORKING_BYTES_PER_VALUE
        with self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()
