"""E4M3, the 8-bit float of FP8 checkpoints: values to codes and back.

E4M3 ("fn"): sign, 4 exponent bits (bias 7), 3 fraction bits; no infinity, largest value 448,
smallest normal 2^-6, smallest subnormal 2^-9; 0x7F and 0xFF are NaN. What a code is multiplied by
is the business of the scheme (`scaled.py`, `fp4.py`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from convert.tensor import Float32

E4M3_MAX = 448.0
_SMALLEST_NORMAL = np.float32(2.0**-6)
_SUBNORMAL_STEP = 2.0**-9


def encode_e4m3(values: Float32) -> NDArray[np.uint8]:
    """Clamp to +-448 and round to nearest E4M3, ties to even."""
    clamped = np.clip(values, np.float32(-E4M3_MAX), np.float32(E4M3_MAX))
    bits = clamped.view(np.uint32)
    sign = ((bits >> 24) & np.uint32(0x80)).astype(np.uint8)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    # Normal: keep 3 of 23 fraction bits, then move the exponent's bias from 127 to 7.
    kept = (magnitude + (np.uint32(0x7FFFF) + ((magnitude >> 20) & np.uint32(1)))) >> 20
    normal = kept - np.uint32((127 - 7) << 3)
    # Subnormal: a whole number of 2^-9; 8 of them are the smallest normal, as its code says.
    steps = np.rint(np.abs(clamped) * np.float32(1 / _SUBNORMAL_STEP)).astype(np.uint32)
    code = np.where(np.abs(clamped) < _SMALLEST_NORMAL, steps, normal)
    return code.astype(np.uint8) | sign


def decode_e4m3(codes: NDArray[np.uint8]) -> Float32:
    """Values of E4M3 codes; 0x7F and 0xFF are NaN."""
    return _values()[codes]


@cache
def _values() -> Float32:
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    magnitude = np.where(
        exponent == 0, fraction * _SUBNORMAL_STEP, (1 + fraction / 8) * 2.0 ** (exponent - 7.0)
    )
    magnitude[(code & 0x7F) == 0x7F] = np.nan
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32)
