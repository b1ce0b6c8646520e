"""Four-bit floats with shared scales: NVFP4 (groups of 16) and MXFP4 (groups of 32).

NVFP4 has two scales, one E4M3 for each group and one float32 for the tensor, shared by q, k and v
and by gate and up, because vLLM runs those as one matrix. With a the largest magnitude of a group,
A that of all tensors that share, T the source's dtype, RN rounding to nearest even:

    global = RN_T(448 * 6 * RN_T(1 / max(A, T's smallest normal))), or 1 where that is infinite
    scale  = RN_E4M3(min(RN_T(a / 6) * global, 448)), or 2^-3 where that is 0
    code   = RN_E2M1(w / (scale / global))              a weight is worth code * scale / global

MXFP4 has one power of two for each group, stored as its exponent plus 127 (E8M0). The group's
largest magnitude goes up to the next power from 1.75 times the power below it:

    scale = 2^(floor_log2(a rounded so) - 2)            code = RN_E2M1(RN_T(w / scale))

Both as compressed-tensors 0.19 has it on the CPU, equal to `llmcompressor.model_free_ptq` in every
byte, zero groups included: for bf16 and fp32 they get the smallest exponent, for fp16 (where that
power is not representable) the exponent of 1. The one exception: where a is so large that the next
power is infinite in T, that tool stores zeros; here the power is not raised and a is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.output_tensor import Encoded, Importance, Part
from convert.tensor import DTYPES, Block, Float32, round_to, to_float32
from quantize.codes import E2M1, Codes, pack_nibbles, unpack_nibbles
from quantize.fp8 import E4M3_MAX, decode_e4m3, encode_e4m3
from quantize.scaled import codes_by_numpy, measure_absmax

NVFP4_GROUP, MXFP4_GROUP = 16, 32
_E4M3_EPSILON_CODE = np.uint8(0x20)  # 2^-3
_TINY = {"BF16": 2.0**-126, "F16": 2.0**-14, "F32": 2.0**-126}
_FRACTION_BITS = {"BF16": 7, "F16": 10, "F32": 23}
_BIAS = 127


def _group_absmax(block: Block, group: int) -> Float32:
    """(rows, columns / group) largest magnitudes."""
    grouped = Block(block.name, block.dtype, 0, block.raw.reshape(-1, group))
    return measure_absmax(grouped).reshape(block.raw.shape[0], -1)


@dataclass(frozen=True, slots=True)
class Nvfp4:
    """E2M1 codes, an E4M3 scale for 16 columns, one float32 for all tensors of a group.

    (out, in) -> weight_packed U8 (out, in/2), weight_scale F8_E4M3 (out, in/16),
    weight_global_scale F32 (1,).
    """

    name: str
    dtype: str
    numerics: str = "ct-eager"
    block_rows: int = 1
    needs_reduce: bool = True

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """Codes, group scales, global scale."""
        rows, columns = shape
        groups = columns // NVFP4_GROUP
        return (
            Part("_packed", "U8", (rows, columns // 2), 1, columns // 2),
            Part("_scale", "F8_E4M3", (rows, groups), 1, groups),
            Part("_global_scale", "F32", (1,), rows, 4),
        )

    def reduce(self, state: Any, block: Block) -> Any:
        """The largest magnitude so far, over all tensors that share the global scale."""
        largest = measure_absmax(block).max()
        return largest if state is None else max(state, largest)

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """(rows, columns) values -> the parts; the global scale goes with the first rows."""
        shared = global_scale(np.float32(state), self.dtype)
        local = round_to(_group_absmax(block, NVFP4_GROUP) / np.float32(6), self.dtype)
        scaled = np.minimum(shared * to_float32(local, self.dtype), np.float32(E4M3_MAX))
        codes = encode_e4m3(scaled)
        scales = np.where(codes == 0, _E4M3_EPSILON_CODE, codes)
        quotients = np.divide(decode_e4m3(scales), shared, dtype=np.float32)
        divisor = np.repeat(quotients, NVFP4_GROUP, axis=1)
        packed = pack_nibbles(E2M1.encode(block.float32() / divisor))
        whole = np.array([] if block.first_row else [shared], dtype=np.float32)
        return Encoded((packed, scales, whole))

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """codes * scale / global, in float32."""
        rows, columns = shape
        shared = stored[2].reshape(-1).view(np.float32)
        scales = decode_e4m3(stored[1].reshape(rows, -1)) / shared
        codes = unpack_nibbles(stored[0].reshape(rows, columns // 2))
        return E2M1.decode(codes) * np.repeat(scales, NVFP4_GROUP, axis=1)


def global_scale(absmax: np.float32, dtype: str) -> np.float32:
    """The scale that takes the largest magnitude to the largest E4M3 times the largest E2M1."""
    floor = np.array([max(float(absmax), _TINY[dtype])], dtype=np.float32)
    inverse = to_float32(round_to(np.float32(1) / floor, dtype), dtype)  # torch's number / tensor
    with np.errstate(over="ignore"):
        product = inverse * np.float32(E4M3_MAX * E2M1.half_range)
        if np.isfinite(product).all():
            product = to_float32(round_to(product, dtype), dtype)
    return np.float32(product[0]) if np.isfinite(product[0]) else np.float32(1)


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """E2M1 codes and a power of two for 32 columns.

    (out, in) -> weight_packed U8 (out, in/2), weight_scale U8 (out, in/32), exponents plus 127.
    """

    name: str
    dtype: str
    numerics: str = "ct-eager"
    block_rows: int = 1
    needs_reduce: bool = False

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """Codes and exponents."""
        rows, columns = shape
        groups = columns // MXFP4_GROUP
        return (
            Part("_packed", "U8", (rows, columns // 2), 1, columns // 2),
            Part("_scale", "U8", (rows, groups), 1, groups),
        )

    def reduce(self, state: Any, block: Block) -> Any:
        """Never called: a group's scale needs that group only."""
        raise AssertionError("MXFP4 has no reduction")

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """(rows, columns) values -> codes and exponents."""
        exponents = power_of_two_exponents(_group_absmax(block, MXFP4_GROUP), self.dtype)
        divisor = np.repeat(_powers(exponents), MXFP4_GROUP, axis=1)
        rounded = self.dtype if self.numerics == "ct-eager" else "F32"
        codes = codes_by_numpy(block, divisor, "E2M1", rounded)
        return Encoded((pack_nibbles(codes), exponents))

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """codes * 2^(exponent - 127), in float32."""
        rows, columns = shape
        scales = _powers(stored[1].reshape(rows, -1))
        codes = unpack_nibbles(stored[0].reshape(rows, columns // 2))
        return E2M1.decode(codes) * np.repeat(scales, MXFP4_GROUP, axis=1)


def power_of_two_exponents(absmax: Float32, dtype: str) -> Codes:
    """E8M0 codes of the scales of groups with these largest magnitudes."""
    fraction = _FRACTION_BITS[dtype]
    stored = round_to(absmax, dtype)  # exact: these are values of that dtype
    bits = stored.view(f"<u{DTYPES[dtype].itemsize}").astype(np.uint32)
    raised = (bits + np.uint32(1 << (fraction - 2))) >> np.uint32(fraction)
    bias = 15 if dtype == "F16" else _BIAS
    raised = np.minimum(raised, np.uint32(2 * bias))  # the next would be infinite
    exponents = raised.astype(np.int32) - bias - 2 + _BIAS
    coded = np.where(raised == 0, 0, np.clip(exponents, 0, 255))
    if dtype == "F16":  # powers below its smallest subnormal are 0 there, and 0 becomes 1
        coded = np.where(coded < _BIAS - 24, _BIAS, coded)
    return coded.astype(np.uint8)


def _powers(exponents: Codes) -> Float32:
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - _BIAS).astype(np.float32)
