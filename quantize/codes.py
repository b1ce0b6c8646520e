"""Small number formats of compressed-tensors checkpoints: value to code, code to value.

A code format is a table and two functions. `half_range` is what a scale maps a unit's largest
magnitude to; for integers it is half of the 2^bits - 1 steps, as compressed-tensors divides.

    E4M3   sign, 4 exponent bits (bias 7), 3 fraction bits; largest 448; no infinity      1 byte
    INT8   -128 ... 127, two's complement                                                 1 byte
    INT4   -8 ... 7, stored as 0 ... 15, eight to a 32-bit word, the first in the low bits
    UINT8  INT8 stored as 0 ... 255, four to a 32-bit word
    E2M1   sign, 2 exponent bits, 1 fraction bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6; two to a byte,
           the first in the low half

All rounding is to nearest, ties to even. A quotient that is rounded to 16 bits before it is coded
has 65,536 possible values, so its second rounding is a look-up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convert.tensor import DTYPES, Float32, to_float32
from quantize.fp8 import decode_e4m3, encode_e4m3

Codes = NDArray[np.uint8]
E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class CodeFormat:
    """How scaled values become codes; `bits` is the width in which they are packed."""

    name: str
    bits: int
    half_range: float
    encode: Callable[[Float32], Codes]
    decode: Callable[[Codes], Float32]


def _integer(name: str, bits: int, *, offset: bool) -> CodeFormat:
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    shift = -lowest if offset else 0

    def encode(values: Float32) -> Codes:
        rounded = np.rint(np.clip(values, np.float32(lowest), np.float32(highest)))
        return (rounded.astype(np.int16) + shift).astype(np.uint8)

    def decode(codes: Codes) -> Float32:
        signed = codes.astype(np.int16) - shift if offset else codes.view(np.int8)
        return signed.astype(np.float32)

    return CodeFormat(name, bits, ((1 << bits) - 1) / 2, encode, decode)


def _encode_e2m1(values: Float32) -> Codes:
    """The nearest of the eight magnitudes, the even code in the middle; +0 for -0."""
    magnitude = np.abs(values)
    # Upper ends of the codes' intervals; where the end itself belongs to the next code, the value
    # just below it.
    ends = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=np.float32)
    ends[1::2] = np.nextafter(ends[1::2], np.float32(0))
    codes = np.searchsorted(ends, magnitude, side="left").astype(np.uint8)
    return np.where(values < 0, codes | np.uint8(8), codes).astype(np.uint8)


def _decode_e2m1(codes: Codes) -> Float32:
    magnitudes = np.array(E2M1_MAGNITUDES, dtype=np.float32)
    return np.concatenate([magnitudes, -magnitudes])[codes]


E4M3 = CodeFormat("E4M3", 8, 448.0, encode_e4m3, decode_e4m3)
INT8 = _integer("INT8", 8, offset=False)
UINT8 = _integer("UINT8", 8, offset=True)
INT4 = _integer("INT4", 4, offset=True)
E2M1 = CodeFormat("E2M1", 4, 6.0, _encode_e2m1, _decode_e2m1)
FORMATS = {code.name: code for code in (E4M3, INT8, UINT8, INT4, E2M1)}


@cache
def code_table(name: str, dtype: str) -> Codes:
    """The code of every 16-bit pattern of `dtype`; patterns that are not finite get that of 0."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype].storage)
    values = to_float32(bits, dtype)
    return FORMATS[name].encode(np.where(np.isfinite(values), values, np.float32(0)))


def pack_words(codes: Codes, bits: int) -> NDArray[np.uint32]:
    """(rows, columns) codes of `bits` bits -> (rows, columns * bits / 32) little-endian words."""
    rows = codes.shape[0]
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    return pack_nibbles(codes).reshape(rows, -1).view("<u4")


def unpack_words(words: NDArray[np.uint32], bits: int) -> Codes:
    """The inverse of `pack_words`."""
    stored = np.ascontiguousarray(words).view(np.uint8)
    return stored if bits == 8 else unpack_nibbles(stored)


def pack_nibbles(codes: Codes) -> Codes:
    """(rows, columns) 4-bit codes -> (rows, columns / 2) bytes, the first code in the low half."""
    return np.ascontiguousarray(codes[:, 0::2] | (codes[:, 1::2] << 4))


def unpack_nibbles(stored: Codes) -> Codes:
    """The inverse of `pack_nibbles`."""
    pairs = np.stack([stored & np.uint8(15), stored >> np.uint8(4)], axis=-1)
    return pairs.reshape(stored.shape[0], -1)
