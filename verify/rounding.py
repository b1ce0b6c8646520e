"""How far rounding to E4M3 can take a weight from its source, and which scale covers it.

An element w, stored as the code q under the scale s of its row, block or tensor, is off by at most

    |w - q*s| <= max(|w| * (2^-4 + 2^-8), s * 2^-10 * (1 + 2^-5))

E4M3 rounds by at most 2^-4 of the value, or half of its subnormal step 2^-9; dividing by s in the
source's dtype adds 2^-8 of the value for bfloat16, less for the others, and at most 2^-15 below the
smallest normal of E4M3. Where the scale was rounded down, w / s exceeds 448 and is clipped; with a
normal scale that costs less than the bound. A subnormal scale has an absolute spacing d and is up
to d/2 too small (F16: s < 2^-14, that is a row below 0.0273, d = 2^-24; BF16 and F32 only below
2^-126), so for q = +-448 under a subnormal s

    |w - q*s| <= max(the above, 448 * d/2 * (1 + 2^-11))

where the last factor covers the rounding of absmax / 448 in float32. No other element needs it:
what s is not, the code makes up for. It matters for rows so small that the scale has few bits left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.errors import TensorError
from convert.tensor import TensorInfo, to_float32
from quantize.fp8 import E4M3_MAX, decode_e4m3

_RELATIVE, _ABSOLUTE = 2.0**-4 + 2.0**-8, 2.0**-10 * (1 + 2.0**-5)
_SUBNORMAL = {
    "F16": (2.0**-14, 2.0**-24),
    "BF16": (2.0**-126, 2.0**-133),
    "F32": (2.0**-126, 2.0**-149),
}
"""Smallest normal number and spacing below it, by dtype."""
Float64 = NDArray[np.float64]


def rounding_ratios(
    w: Float64, codes: NDArray[np.uint8], scales: Float64, scale_dtype: str
) -> Float64:
    """Error over bound of every element, infinite where there is no number; shapes broadcast."""
    q = decode_e4m3(codes).astype(np.float64)
    smallest_normal, spacing = _SUBNORMAL[scale_dtype]
    bound = np.maximum(np.abs(w) * _RELATIVE, scales * _ABSOLUTE)
    clipped = (np.abs(q) == E4M3_MAX) & (scales < smallest_normal)
    allowed = E4M3_MAX * spacing / 2 * (1 + 2.0**-11)
    bound = np.where(clipped, np.maximum(bound, allowed), bound)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = np.abs(w - q * scales) / bound
    return np.where(np.isnan(ratios), np.inf, ratios)


@dataclass(frozen=True, slots=True)
class Scales:
    """All scales of one matrix, and the rows and columns that each of them covers."""

    values: Float64
    dtype: str
    rows_each: int
    columns_each: int
    columns: int

    def rows(self, start: int, stop: int) -> Float64:
        """The scale of every element of rows `start` to `stop`, or something that broadcasts."""
        chosen = self.values[np.arange(start, stop) // self.rows_each]
        if chosen.shape[1] == 1:
            return chosen
        return np.repeat(chosen, self.columns_each, axis=1)[:, : self.columns]


def read_scales(
    stored: Checkpoint, scale: TensorInfo, info: TensorInfo, block: tuple[int, int]
) -> Scales:
    """The scales of the matrix `info`: one for the tensor, for each row, or for each `block`."""
    raw = stored.read_rows(scale, 0, scale.rows).raw
    values = to_float32(raw, scale.dtype).astype(np.float64)
    if values.size == 1:
        return Scales(values.reshape(1, 1), scale.dtype, info.rows, info.columns, info.columns)
    if scale.shape == (info.rows, 1):
        return Scales(values, scale.dtype, 1, info.columns, info.columns)
    expected = (-(-info.rows // block[0]), -(-info.columns // block[1]))
    if scale.shape != expected:
        raise TensorError(
            f"{scale.name}: shape {list(scale.shape)} fits no granularity of a weight"
            f" {list(info.shape)}; expected one scale, one a row, or {list(expected)}"
        )
    return Scales(values, scale.dtype, *block, info.columns)
