"""Stored values beside what encoding the source again gives: the errors of both, and the limits.

In: blocks of rows, as float64: the source's values, ours (encoded again, decoded), theirs (what the
artifact stores, decoded). Out: a `Deviation` a tensor. Equal bytes are the end of it. Other bytes
are not yet wrong: another version, another machine's float rounding, scales chosen otherwise. Then
errors are compared, root of the summed squares over that of the source's values:

    whole tensor   at most 1.25 times that of our own encoding
    any one row    at most 3 times that of our own encoding, as a shifted scale in one row of
                   thousands hardly moves the whole; of a matrix whose columns hold factors that
                   another matrix's rows gave away (`rescaled.py`), any one column too

    the same, by a method that makes up for each column's rounding in the next (GPTQ)
                   at most 3 and 6 times

1.25 is what imatrix weighting costs in unweighted error at two bits, with room; it is a gate
against damage, not between quantizers. GPTQ has more error in the weights, and less in what they
compute: of hermes-nano in W4A16, 1.2 to 1.6 times ours over the bundled text, 1.4 to 2.1 over three
conversations of it, 2.4 in the worst row (llm-compressor 0.14, 2026-11-21). Tensors that were
swapped have ten times ours and more at four bits. An error of ours below 1e-7 of the values counts
as that: it is what float32 arithmetic leaves in any decoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WHOLE_LIMIT, ROW_LIMIT = 1.25, 3.0
MADE_UP_WHOLE_LIMIT, MADE_UP_ROW_LIMIT = 3.0, 6.0
"""Where errors of one column are made up for in the next."""
_TINY = 1e-7
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Deviation:
    """How a tensor's stored values differ from the source's, beside what encoding it again gives.

    `ratio` and `row_ratio` are the error over our own, of the whole and of the worst row;
    `column_ratio` that of the worst column, 1 where columns are not looked at. `made_up_for` says
    that GPTQ or its like rounded it.
    """

    name: str
    same_bytes: bool
    error: float
    ratio: float
    row_ratio: float
    worst_row: int
    column_ratio: float = 1.0
    worst_column: int = 0

    made_up_for: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """Of the whole, and of any row or column."""
        if self.made_up_for:
            return MADE_UP_WHOLE_LIMIT, MADE_UP_ROW_LIMIT
        return WHOLE_LIMIT, ROW_LIMIT

    @property
    def wrong(self) -> bool:
        """Whether it is beyond what another quantizer may do."""
        whole, line = self.limits
        return self.ratio > whole or max(self.row_ratio, self.column_ratio) > line

    @property
    def message(self) -> str:
        """The errors, beside their limits."""
        whole, line = self.limits
        column = ""
        if self.column_ratio > line:
            column = f"; column {self.worst_column} {self.column_ratio:.3g} times"
        return (
            f"relative error {self.error:.3g}, {self.ratio:.3g} times that of encoding it again"
            f" (limit {whole:g}); row {self.worst_row} {self.row_ratio:.3g} times{column}"
            f" (limit {line:g})"
        )


@dataclass(frozen=True, slots=True)
class BlockErrors:
    """One block: whether its bytes are equal, squared sums, the worst row's ratio.

    `columns` is (3, columns), where asked for: squared sums of their error, ours, and the values.
    """

    same: bool
    theirs: float
    ours: float
    values: float
    row_ratio: float
    row: int
    columns: Float64 | None = None


def compare_block(
    w: Float64,
    ours: Float64,
    theirs: Float64,
    *,
    same: bool,
    row: int,
    by_column: bool = False,
) -> BlockErrors:
    """Errors of the rows from `row` on; all three are (rows, columns)."""
    squares = np.square(w)
    own = _squared_error(ours, w)
    their = own if theirs is ours else _squared_error(theirs, w)
    by_row, own_row, their_row = squares.sum(axis=1), own.sum(axis=1), their.sum(axis=1)
    total, ours_total, theirs_total = by_row.sum(), own_row.sum(), their_row.sum()
    columns = None
    if by_column:
        columns = np.stack([their.sum(axis=0), own.sum(axis=0), squares.sum(axis=0)])
    worst, ratio = 0, 1.0
    if not same and len(w):
        ratios = _ratios(their_row, own_row, by_row)
        worst = int(ratios.argmax())
        ratio = float(ratios[worst])
    return BlockErrors(
        same, float(theirs_total), float(ours_total), float(total), ratio, row + worst, columns
    )


def _squared_error(found: Float64, w: Float64) -> Float64:
    """Infinite where a stored value is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(found - w)
    return np.where(np.isnan(squares), np.inf, squares)


def _ratios(theirs: Float64, ours: Float64, values: Float64) -> Float64:
    """Roots of squared sums, theirs over ours."""
    floor = _TINY * np.sqrt(values) + np.finfo(np.float64).tiny
    return np.asarray(np.sqrt(theirs) / np.maximum(np.sqrt(ours), floor))


def sum_up(name: str, blocks: Iterable[BlockErrors]) -> Deviation:
    """All blocks of a tensor together."""
    same, row_ratio, worst_row = True, 0.0, 0
    sums = np.zeros(3)
    columns: Float64 | None = None
    for block in blocks:
        same = same and block.same
        sums += (block.theirs, block.ours, block.values)
        if block.row_ratio > row_ratio:
            row_ratio, worst_row = block.row_ratio, block.row
        if block.columns is not None:
            columns = block.columns if columns is None else columns + block.columns
    theirs, ours, values = (math.sqrt(total) for total in sums)
    column_ratio, worst_column = 1.0, 0
    if columns is not None and not same:
        ratios = _ratios(*columns)
        worst_column = int(ratios.argmax())
        column_ratio = float(ratios[worst_column])
    values = values or 1.0
    return Deviation(
        name=name,
        same_bytes=same,
        error=theirs / values,
        ratio=1.0 if same else theirs / max(ours, _TINY * values),
        row_ratio=row_ratio,
        worst_row=worst_row,
        column_ratio=column_ratio,
        worst_column=worst_column,
    )
