"""FP8 E4M3 weights with one scale per output channel: what vLLM runs as FP8_DYNAMIC.

E4M3 ("fn"): sign, 4 exponent bits (bias 7), 3 fraction bits; no infinity, largest value 448,
smallest normal 2^-6, smallest subnormal 2^-9. A stored weight is worth `q * scale`.

The bits are those of compressed-tensors 0.19 on the CPU, its eager path (named `ct-eager` here):
with T the dtype of the source weight, RN_T rounding to nearest even into T, divisions in float32,

    scale = RN_T(absmax(row) / 448), or T's epsilon where that is 0
    y     = clamp(RN_T(w / scale), -448, 448)          the first rounding
    q     = RN_E4M3(y)                                 the second

Measured equal to `llmcompressor.model_free_ptq` in every byte. Since y is a 16-bit number for the
16-bit sources, numpy looks its second rounding up in a table of 65,536 entries; where
`quantize/kernels` was built, that makes the same bits. Weights of Linear modules only; embeddings,
the head, norms and biases are never given to this scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.output_tensor import Encoded, Importance, Part
from convert.tensor import DTYPES, EPSILON, Array, Block, Float32, round_to, to_float32
from quantize import kernels

E4M3_MAX = 448.0
_SMALLEST_NORMAL = np.float32(2.0**-6)
_SUBNORMAL_STEP = 2.0**-9


@dataclass(frozen=True, slots=True)
class Fp8Channel:
    """E4M3 weights, one scale of the source's dtype per row; `scale_dtype` names that dtype.

    shape (out, in) -> weight F8_E4M3 (out, in), weight_scale (out, 1).
    """

    scale_dtype: str
    name: str = "FP8_DYNAMIC"
    numerics: str = "ct-eager"
    block_rows: int = 1
    needs_reduce: bool = False

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """The weight and its scales."""
        rows, columns = shape
        itemsize = DTYPES[self.scale_dtype].itemsize
        return (
            Part("", "F8_E4M3", shape, 1, columns),
            Part("_scale", self.scale_dtype, (rows, 1), 1, itemsize),
        )

    def reduce(self, state: Any, block: Block) -> Any:
        """Never called: a row's scale needs that row only."""
        raise AssertionError("channel scales have no reduction")

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """(rows, columns) values -> (rows, columns) codes and (rows, 1) scales."""
        assert block.dtype == self.scale_dtype, (block.dtype, self)
        scales = channel_scales(block)
        codes = encode_scaled(block, to_float32(scales, block.dtype))
        return Encoded((codes, scales))

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """codes * scales, in float32."""
        scales = to_float32(stored[1].view(DTYPES[self.scale_dtype].storage), self.scale_dtype)
        codes = stored[0].reshape(shape)
        return decode_e4m3(codes) * scales.reshape(-1, 1)


def channel_scales(block: Block) -> Array:
    """(rows, 1) scales in the storage dtype of the source."""
    build = kernels.build()
    absmax = absmax_by_numpy(block) if build is None else kernels.measure_absmax(build, block)
    scales = round_to(absmax / np.float32(E4M3_MAX), block.dtype)
    epsilon = round_to(np.array([EPSILON[block.dtype]], dtype=np.float32), block.dtype)
    return np.where(scales == 0, epsilon, scales)


def absmax_by_numpy(block: Block) -> Float32:
    """(rows, 1) largest magnitudes of the rows."""
    if block.dtype == "F32":
        return np.asarray(np.abs(block.raw).max(axis=1, keepdims=True), dtype=np.float32)
    # magnitudes of 16-bit floats are ordered as their bits without the sign
    bits = (block.raw.view(np.uint16) & np.uint16(0x7FFF)).max(axis=1, keepdims=True)
    return to_float32(bits.view(DTYPES[block.dtype].storage), block.dtype)


def encode_scaled(block: Block, scales: Float32) -> NDArray[np.uint8]:
    """E4M3 codes of block / scales with the double rounding of `ct-eager`; scales broadcast."""
    build = kernels.build()
    if build is not None and scales.shape == (len(block.raw), 1):
        return kernels.encode_e4m3(build, block, scales)
    return encode_scaled_by_numpy(block, scales)


def encode_scaled_by_numpy(block: Block, scales: Float32) -> NDArray[np.uint8]:
    """The same, for scales of any shape and machines without the kernels."""
    rounded = round_to(block.float32() / scales, block.dtype)
    if block.dtype == "F32":
        return encode_e4m3(rounded.astype(np.float32))
    return _table(block.dtype)[rounded.view(np.uint16)]


@cache
def _table(dtype: str) -> NDArray[np.uint8]:
    """The E4M3 code of every 16-bit pattern of `dtype`; patterns that are not finite get 0."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype].storage)
    values = to_float32(bits, dtype)
    return encode_e4m3(np.where(np.isfinite(values), values, np.float32(0)))


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
