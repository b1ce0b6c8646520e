"""The source's rows as a folder was to store them: read in blocks, with what was folded into them.

In: the source's checkpoint. Out: blocks of its rows, times `Factors` where scales were moved from
one matrix to another before rounding (`rescaled.py`), in the source's own dtype; and the largest
magnitude of all matrices that share one scale. NVFP4 shares it between the matrices that engines
run as one: q, k and v, gate and up. Never more than a block is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.blocks import Rows, row_blocks
from convert.checkpoint import Checkpoint
from convert.tensor import Block, TensorInfo, round_to
from quantize.scaled import measure_absmax
from verify.quantization import Group

Float64 = NDArray[np.float64]
BLOCK_VALUES = 1 << 18
"""Values of one row block; a thread holds about a dozen float64 arrays of that size."""
_RUN_AS_ONE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


@dataclass(frozen=True, slots=True)
class Factors:
    """What rows and columns were multiplied by, one number each; None for nothing."""

    rows: Float64 | None = None
    columns: Float64 | None = None

    def __bool__(self) -> bool:
        return self.rows is not None or self.columns is not None

    def applied(self, block: Block) -> Block:
        """A block of the source with the factors in it, in its own dtype."""
        values = block.float32().astype(np.float64)
        if self.rows is not None:
            values *= self.rows[block.first_row : block.first_row + len(values), None]
        if self.columns is not None:
            values *= self.columns
        with np.errstate(over="ignore"):
            rounded = round_to(values.astype(np.float32), block.dtype)
        return Block(block.name, block.dtype, block.first_row, rounded)


NO_FACTORS = Factors()


def read_rows(
    source: Checkpoint, info: TensorInfo, factors: Factors, start: int, stop: int
) -> Block:
    """Rows `start` to `stop` of a tensor, with the factors in them."""
    block = source.read_rows(info, start, stop)
    return factors.applied(block) if factors else block


def blocks_of(info: TensorInfo, step: int) -> Iterable[Rows]:
    """The row blocks of a tensor, each of whole steps."""
    return row_blocks(info, info.rows, step, BLOCK_VALUES)


def apart(blocks: Iterable[Rows]) -> tuple[list[int], list[int]]:
    """Starts and stops, as a pool's `map` takes them."""
    pairs = list(blocks)
    return [start for start, _ in pairs], [stop for _, stop in pairs]


def shared_absmax(
    source: Checkpoint, info: TensorInfo, group: Group, factors: Factors, pool: ThreadPoolExecutor
) -> np.float32:
    """The largest magnitude of a matrix, and of those that have one scale with it."""
    largest = np.float32(0)
    for sibling in _siblings(source, info, group):

        def look(start: int, stop: int, sibling: TensorInfo = sibling) -> np.float32:
            rows = read_rows(source, sibling, factors, start, stop)
            return np.float32(measure_absmax(rows).max())

        largest = max([largest, *pool.map(look, *apart(blocks_of(sibling, 1)))])
    return largest


def _siblings(source: Checkpoint, info: TensorInfo, group: Group) -> Iterator[TensorInfo]:
    parent, _, last = info.name.removesuffix(".weight").rpartition(".")
    shared = group.strategy == "tensor_group"
    for name in next((names for names in _RUN_AS_ONE if shared and last in names), (last,)):
        sibling = source.tensors.get(f"{parent}.{name}.weight")
        if sibling is not None and sibling.dtype == info.dtype:
            yield sibling
