"""The edit of abliteration: a matrix that writes to the residual stream forgets one direction.

W (out, in) is Hugging Face's layout of a projection, and x -> W x writes along its rows' index.
With r a unit vector of `out` numbers and a strength s (1 removes r, more pushes past it):

    a   = r^T W                       one number a column, float64, added up row by row
    W'  = W - (s r) a^T               float32, rounded once to W's own dtype
    W'j = W'j * |Wj| / |W'j|          with `keep_norms`, each column; |W'j| in closed form:
                                      |W'j|^2 = |Wj|^2 - (2 s - s^2) aj^2

Keeping the norms of *columns* leaves r^T W' = 0 at s = 1; keeping those of rows, as heretic's
default does, leaves a quarter of r in place. Method: Arditi et al. 2024 (arXiv 2406.11717); column
norms after grimjim. The sums run in the order of the rows, so that bytes depend neither on block
size nor on threads. An embedding holds one vector of the stream in each row and needs no sum:
`EmbeddingEdit` takes r out of each.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.tensor import Block, Float32, round_to

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ColumnSums:
    """What all rows add up to: `along` = r^T W and `squares` = |Wj|^2 [in]; `rows` seen so far."""

    along: Float64
    squares: Float64
    rows: int


@dataclass(frozen=True)
class RankOneEdit:
    """One projection's edit: its unit direction [out], how strongly, whether norms are kept."""

    direction: Float32
    strength: float
    keep_norms: bool = False

    @cached_property
    def digest(self) -> str:
        """sha256 of the direction, the strength and the form."""
        return _digest("projection", self.direction, self.strength, self.keep_norms)

    def reduce(self, state: ColumnSums | None, block: Block) -> ColumnSums:
        """Add the next rows; only the state that comes back may be used."""
        columns = block.raw.shape[1]
        sums = state or ColumnSums(np.zeros(columns), np.zeros(columns), 0)
        row64, product = np.empty(columns), np.empty(columns)
        for number, row in enumerate(block.float32(), start=sums.rows):
            row64[:] = row
            np.multiply(row64, float(self.direction[number]), out=product)
            np.add(sums.along, product, out=sums.along)
            np.multiply(row64, row64, out=product)
            np.add(sums.squares, product, out=sums.squares)
        return ColumnSums(sums.along, sums.squares, sums.rows + len(block.raw))

    def apply(self, block: Block, state: ColumnSums) -> Block:
        """Rows of W'."""
        rows = slice(block.first_row, block.first_row + len(block.raw))
        scaled = self.direction[rows] * np.float32(self.strength)
        values = block.float32() - scaled[:, None] * state.along.astype(np.float32)
        if self.keep_norms:
            values *= self._factors(state)
        return Block(block.name, block.dtype, block.first_row, round_to(values, block.dtype))

    def _factors(self, state: ColumnSums) -> Float32:
        """|Wj| / |W'j|; 1 where nothing would be left of a column."""
        removed = (2 * self.strength - self.strength**2) * state.along**2
        left = state.squares - removed
        kept = left > 1e-12 * state.squares
        return np.sqrt(np.divide(state.squares, left, out=np.ones_like(left), where=kept)).astype(
            np.float32
        )

    def describe(self, before: ColumnSums, after: ColumnSums) -> dict[str, Any]:
        """Strength, share of W's energy along r, and what is left of r^T W, as a share of it."""
        along = float(np.linalg.norm(before.along))
        return _record(
            self,
            along / math.sqrt(before.squares.sum() or 1.0),
            float(np.linalg.norm(after.along)) / (along or 1.0),
        )


@dataclass(frozen=True)
class EmbeddingEdit:
    """An embedding's edit: r [hidden] is taken out of every row, which may keep its norm."""

    direction: Float32
    strength: float
    keep_norms: bool = False

    @cached_property
    def digest(self) -> str:
        """sha256 of the direction, the strength and the form."""
        return _digest("embedding", self.direction, self.strength, self.keep_norms)

    def reduce(self, state: tuple[float, float] | None, block: Block) -> tuple[float, float]:
        """Squares of what lies along r, and of everything, row by row."""
        along, total = state or (0.0, 0.0)
        for row in block.float32().astype(np.float64):
            along += float((row * self.direction).sum()) ** 2
            total += float((row * row).sum())
        return along, total

    def apply(self, block: Block, state: tuple[float, float]) -> Block:
        """Rows without r."""
        values = block.float32()
        wide = values.astype(np.float64)
        along = (wide * self.direction).sum(axis=1, keepdims=True).astype(np.float32)
        edited = values - along * (self.direction * np.float32(self.strength))
        if self.keep_norms:
            old, new = (np.linalg.norm(w, axis=1, keepdims=True) for w in (wide, edited))
            edited *= np.divide(old, new, out=np.ones_like(old), where=new > 0).astype(np.float32)
        return Block(block.name, block.dtype, block.first_row, round_to(edited, block.dtype))

    def describe(self, before: tuple[float, float], after: tuple[float, float]) -> dict[str, Any]:
        """As for a projection."""
        return _record(
            self,
            math.sqrt(before[0] / (before[1] or 1.0)),
            math.sqrt(after[0] / (before[0] or 1.0)),
        )


def direction_sha256(direction: Float32) -> str:
    """sha256 of a direction's float32 bytes."""
    return hashlib.sha256(np.ascontiguousarray(direction, dtype="<f4").tobytes()).hexdigest()


def _digest(kind: str, direction: Float32, strength: float, keep_norms: bool) -> str:
    parts = (kind, direction_sha256(direction), repr(strength), keep_norms)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _record(edit: RankOneEdit | EmbeddingEdit, removed: float, left: float) -> dict[str, Any]:
    return {
        "strength": edit.strength,
        "keep_norms": edit.keep_norms,
        "direction_sha256": direction_sha256(edit.direction),
        "share_along_direction": removed,
        "left_along_direction": left,
    }
