"""Stored bits as whole numbers, so that two values next to each other are one apart.

Floats of any width are ordered as their bits without the sign: 0x38 and 0x39 are neighbours in E4M3
as in bfloat16, and both zeros are 0. Integers are themselves. Packed weights are taken apart: eight
4-bit integers in an I32 (compressed-tensors, offset binary), two E2M1 in a U8. The distance of two
codes is how many values of the format lie between them: 1 is the smallest difference there is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convert.tensor import DTYPES, Array, TensorInfo
from quantize.codes import unpack_nibbles

_FLOATS = ("F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
Codes = NDArray[np.int64]


def code_bits(info: TensorInfo, items: Array, num_bits: int = 8) -> Codes:
    """The bits of each value as a whole number; `num_bits` is the width of packed ones."""
    octets = np.ascontiguousarray(items).view(np.uint8)
    if info.name.endswith("_packed"):
        if num_bits == 4:
            octets = unpack_nibbles(octets.reshape(1, -1)).reshape(-1)
        return octets.astype(np.int64)
    if info.dtype in _FLOATS:
        return items.view(f"u{DTYPES[info.dtype].itemsize}").astype(np.int64)
    return items.view(np.int64) if info.dtype == "F64" else items.astype(np.int64)


def ordered(info: TensorInfo, bits: Codes) -> Codes:
    """Signed numbers in the order of the values that `bits` stand for."""
    if info.name.endswith("_packed"):
        return _signed(bits, 8) if info.dtype == "U8" else bits
    if info.dtype in _FLOATS:
        return _signed(bits, 1 << (8 * DTYPES[info.dtype].itemsize - 1))
    if info.dtype == "F64":  # in steps of two, so that a distance fits
        return np.where(bits < 0, -(bits & ((1 << 63) - 1)), bits) >> 1
    return bits


def _signed(bits: Codes, sign: int) -> Codes:
    """Sign and magnitude to a signed number; `sign` is the value of the sign's bit."""
    return np.where(bits & sign, -(bits & (sign - 1)), bits)
