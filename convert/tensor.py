"""What a stored tensor is: its dtype, its place in a file, and a block of its rows in memory.

A tensor is row-major and every tensor is (rows, columns) to the rest of the project: the last
dimension is the columns, the others together the rows; a vector of n values is one row.
numpy has no bfloat16, so BF16 values travel as the uint16 bit patterns that the file holds. A
BF16 is the upper half of a float32 (same sign and exponent, 7 of the 23 fraction bits), hence
widening is a shift and exact, and narrowing is a rounding of the upper half to nearest even.

Comes in: safetensors dtype names and shapes. Goes out: `TensorInfo`, `Block`, and the conversions
between BF16 bits and float32. Opens no file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.errors import TensorError

Array = NDArray[np.generic]
Float32 = NDArray[np.float32]
UInt16 = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class DType:
    """A safetensors dtype: its name there, its width, and the numpy dtype its bytes travel in."""

    name: str
    itemsize: int
    storage: str


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("U64", 8, "<u8"),
        DType("I64", 8, "<i8"),
        DType("F64", 8, "<f8"),
        DType("F32", 4, "<f4"),
        DType("U32", 4, "<u4"),
        DType("I32", 4, "<i4"),
        DType("BF16", 2, "<u2"),
        DType("F16", 2, "<f2"),
        DType("U16", 2, "<u2"),
        DType("I16", 2, "<i2"),
        DType("F8_E8M0", 1, "u1"),
        DType("F8_E4M3", 1, "u1"),
        DType("F8_E5M2", 1, "u1"),
        DType("I8", 1, "i1"),
        DType("U8", 1, "u1"),
        DType("BOOL", 1, "u1"),
    )
}
"""By name, in the order in which the safetensors library lays tensors out in a file."""
SOURCE_DTYPES = ("BF16", "F16", "F32")
"""The dtypes of an unquantized checkpoint: what a weight may be stored in to be worked on."""
_INFINITY = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000}
"""The bits of positive infinity, by dtype."""
EPSILON = {"BF16": 2.0**-7, "F16": 2.0**-10, "F32": 2.0**-23}
"""Distance from 1 to the next value, by dtype."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as a safetensors header describes it; `offset` counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def rows(self) -> int:
        """Rows of the (rows, columns) view."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Values per row."""
        return self.shape[-1] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes per row."""
        return self.columns * DTYPES[self.dtype].itemsize

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.rows * self.row_bytes


class Block:
    """Rows `first_row`, `first_row + 1`, ... of one tensor, as stored: `raw` is (rows, columns).

    The float32 form is made at most once and shared by every scheme that asks for it.
    """

    __slots__ = ("_float32", "dtype", "first_row", "name", "raw")

    def __init__(self, name: str, dtype: str, first_row: int, raw: Array) -> None:
        self.name, self.dtype, self.first_row, self.raw = name, dtype, first_row, raw
        self._float32: Float32 | None = None

    def float32(self) -> Float32:
        """Values as float32, exactly; (rows, columns), C-contiguous."""
        if self._float32 is None:
            self._float32 = to_float32(self.raw, self.dtype)
        return self._float32

    def permuted(self, order: NDArray[np.intp]) -> Block:
        """The same rows in another order: row i of the result is row `order[i]` of this block."""
        return Block(self.name, self.dtype, self.first_row, self.raw[order])

    def check_finite(self) -> None:
        """Raise TensorError at the first NaN or infinity, naming its row and column."""
        if all_finite(self.raw, self.dtype):
            return
        finite = finite_mask(self.raw, self.dtype)
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        value = to_float32(self.raw[row : row + 1, column : column + 1], self.dtype).item()
        raise TensorError(
            f"{self.name}: {value} at row {self.first_row + row}, column {column}; a weight must be"
            " finite. The checkpoint is damaged or was saved after a diverged training step"
        )


def to_float32(raw: Array, dtype: str) -> Float32:
    """Widen stored values to float32 without loss; `raw` is in the storage dtype of `dtype`."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("F16", "F32"):
        return np.ascontiguousarray(raw, dtype=np.float32)
    raise TensorError(f"dtype {dtype} does not widen to float32; expected {SOURCE_DTYPES}")


def round_to_bf16(values: Float32) -> UInt16:
    """Round finite float32 values to the nearest BF16, ties to even; bit patterns out.

    Adding 0x7FFF plus the lowest kept bit carries into the upper half exactly when the lower half
    is above the middle, or on it with an odd upper half. A carry out of the largest finite value
    gives infinity, as IEEE 754 asks.
    """
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) >> 16).astype(np.uint16)


def round_to(values: Float32, dtype: str) -> Array:
    """Round finite float32 values to `dtype` (nearest, ties to even), in its storage dtype."""
    if dtype == "BF16":
        return round_to_bf16(values)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    assert dtype == "F32", dtype
    return values


def all_finite(raw: Array, dtype: str) -> bool:
    """Whether no stored value is NaN or infinite: two passes, and no memory.

    Those have the largest exponent. As signed numbers the bits of positive ones are the largest of
    all, as unsigned numbers those of negative ones.
    """
    if not raw.size or dtype not in _INFINITY:
        return bool(finite_mask(raw, dtype).all())
    size, infinity = DTYPES[dtype].itemsize, _INFINITY[dtype]
    signed, unsigned = raw.view(f"i{size}"), raw.view(f"u{size}")
    return bool(signed.max() < infinity and unsigned.max() < infinity + (1 << (8 * size - 1)))


def finite_mask(raw: Array, dtype: str) -> NDArray[np.bool_]:
    """True where a stored value is neither NaN nor infinite."""
    if dtype == "BF16":
        exponent = raw.view(np.uint16) & np.uint16(0x7F80)
        return np.asarray(exponent != np.uint16(0x7F80), dtype=np.bool_)
    return np.asarray(np.isfinite(raw), dtype=np.bool_)
