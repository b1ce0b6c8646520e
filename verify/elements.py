"""Elements of a tensor that are not what they may be: bits of copies, E4M3 beyond its rounding.

In: a tensor of the source and the one that stands for it, read together in row blocks. Out: an
`Elements`: how many are out of bounds, in how many rows, and which row is worst. A copy's element
is right to the bit or off by infinity; one of E4M3 has the bound that `rounding.py` derives. Only
five numbers leave a thread, and the arrays of a block live as long as it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from convert.checkpoint import Checkpoint
from convert.tensor import DTYPES, TensorInfo
from verify.rounding import Float64, read_scales, rounding_ratios
from verify.source_rows import apart, blocks_of
from verify.stored_matrix import StoredMatrix

Look = Callable[[int, int], Float64]
"""Error over bound of the rows from one number up to another."""


@dataclass(frozen=True, slots=True)
class Elements:
    """How many of a tensor's values are out of bounds; `ratio` is the largest error over bound."""

    values: int
    out_of_bounds: int
    rows: int
    worst_row: int
    ratio: float

    @property
    def message(self) -> str:
        """How many, and where they are worst."""
        share = 100 * self.out_of_bounds / max(self.values, 1)
        by = "" if np.isinf(self.ratio) else f" by a factor of {self.ratio:.3g}"
        return (
            f"{self.out_of_bounds:,} values ({share:.3g} %) in {self.rows:,} rows are out of"
            f" bounds, row {self.worst_row} worst{by}"
        )


def measure_bits(
    source: Checkpoint, stored: Checkpoint, info: TensorInfo, pool: ThreadPoolExecutor
) -> Elements:
    """A tensor that both have in one dtype and shape, bit by bit."""
    found = stored.tensors[info.name]
    bits = f"u{DTYPES[info.dtype].itemsize}"

    def look(start: int, stop: int) -> Float64:
        ours = source.read_rows(info, start, stop).raw.view(bits)
        theirs = stored.read_rows(found, start, stop).raw.view(bits)
        return np.where(ours == theirs, 0.0, np.inf)

    return _measure(info, look, pool)


def measure_bounds(
    source: Checkpoint, matrix: StoredMatrix, info: TensorInfo, pool: ThreadPoolExecutor
) -> Elements:
    """A matrix in E4M3 under scales that are floats, each element against its bound."""
    scales = read_scales(matrix.folder, matrix.scale, info, matrix.group.block)

    def look(start: int, stop: int) -> Float64:
        w = source.read_rows(info, start, stop).float32().astype(np.float64)
        codes = matrix.folder.read_rows(matrix.weight, start, stop).raw.view(np.uint8)
        return rounding_ratios(w, codes, scales.rows(start, stop), scales.dtype)

    return _measure(info, look, pool)


def _measure(info: TensorInfo, look: Look, pool: ThreadPoolExecutor) -> Elements:
    parts = list(pool.map(partial(_look_at_rows, look), *apart(blocks_of(info, 1))))
    worst = max(parts, key=lambda part: part.ratio, default=Elements(0, 0, 0, 0, 0.0))
    return Elements(
        values=info.rows * info.columns,
        out_of_bounds=sum(part.out_of_bounds for part in parts),
        rows=sum(part.rows for part in parts),
        worst_row=worst.worst_row,
        ratio=worst.ratio,
    )


def _look_at_rows(look: Look, start: int, stop: int) -> Elements:
    ratios = look(start, stop)
    wrong, by_row = ratios > 1, ratios.max(axis=1, initial=0.0)
    worst = int(by_row.argmax())
    bad, rows = int(np.count_nonzero(wrong)), int(np.count_nonzero(wrong.any(axis=1)))
    return Elements(ratios.size, bad, rows, start + worst, float(by_row[worst]))
