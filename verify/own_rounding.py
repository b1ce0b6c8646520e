"""What rounding to nearest, without data, makes of rows in the form in which a matrix is stored.

In: how a folder stores a matrix, and the dtype of the source. Out: a function from a block of the
source's rows to the values that are left of it, and to the bytes, where this project writes the
form. It is what another tool's file is measured by: its error may be 1.25 times that of this.

Bytes come from `quantize/`, whose numerics profile is `ct-eager`, or `fp32-scales` where scales
are stored so. Forms that are only read here have values and no bytes, by compressed-tensors' words
(`quantization/utils`, 0.19):

    zero points   scale = RN_T((max - min) / (2^bits - 1)), zero point = RN(-min / scale)
    MXFP8         scale = 2^(floor_log2(a, rounded so) - 8), as MXFP4 with another offset

`measure_absmax` of all rows, and of all matrices that share it, is to be given where one scale
covers them (`needs_absmax`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from convert.errors import UnsupportedError
from convert.output_tensor import Scheme
from convert.tensor import Block, Float32, to_float32
from quantize.fp4 import MXFP4_GROUP, NVFP4_GROUP, Mxfp4, Nvfp4, power_of_two_exponents
from quantize.fp8 import decode_e4m3, encode_e4m3
from quantize.scaled import BLOCK, Scaled, measure_absmax, scales_of
from verify.quantization import Group
from verify.stored_matrix import Bytes, Float64, StoredMatrix

_PACKED_CODES = {4: "INT4", 8: "UINT8"}
_E8M0_BIAS, _MXFP4_OFFSET, _MXFP8_OFFSET = 127, 2, 8


@dataclass(frozen=True, slots=True)
class Rounded:
    """A block rounded: (rows, columns) values; the bytes of codes, scales and what is shared.

    Values are decoded when they are asked for. `parts` is empty for a form that this project does
    not write.
    """

    values: Callable[[], Float64]
    parts: tuple[Bytes, ...] = ()


Rounding = Callable[[Block], Rounded]


def needs_absmax(group: Group) -> bool:
    """Whether one scale covers the whole matrix, or more than one matrix."""
    return group.strategy in ("tensor", "tensor_group")


def own_rounding(matrix: StoredMatrix, dtype: str, absmax: np.float32 | None) -> Rounding:
    """How rows of `dtype` are rounded; UnsupportedError for a form that nothing here makes."""
    group, columns = matrix.group, matrix.shape[1]
    size = group.group_size
    grouped = group.strategy in ("group", "tensor_group")
    if grouped and (size < 1 or columns % size):
        raise _unsupported(matrix, f"groups of {size} in rows of {columns}")
    if not group.symmetric:
        if group.strategy not in ("group", "channel"):
            raise _unsupported(matrix, f"zero points, one a {group.strategy}")
        return partial(_with_zero_points, group.num_bits, size if grouped else columns)
    if group.format == "mxfp8-quantized":
        if size != MXFP4_GROUP:
            raise _unsupported(matrix, f"MXFP8 in groups of {size}")
        return _mxfp8
    return partial(_by_scheme, _scheme(matrix, dtype), absmax)


def _unsupported(matrix: StoredMatrix, what: str) -> UnsupportedError:
    return UnsupportedError(f"{matrix.weight.name}: {what}: not encoded here")


def _scheme(matrix: StoredMatrix, dtype: str) -> Scheme:
    """The scheme of `quantize/` that stores a matrix so."""
    group, name = matrix.group, matrix.group.name
    if group.format == "nvfp4-pack-quantized":
        if group.group_size != NVFP4_GROUP:
            raise _unsupported(matrix, f"NVFP4 in groups of {group.group_size}")
        return Nvfp4(name, dtype)
    if group.format == "mxfp4-pack-quantized":
        if group.group_size != MXFP4_GROUP:
            raise _unsupported(matrix, f"MXFP4 in groups of {group.group_size}")
        return Mxfp4(name, dtype)
    packed = matrix.weight.dtype == "I32"
    code = "E4M3" if matrix.weight.dtype == "F8_E4M3" else "INT8"
    if packed:
        code = _PACKED_CODES[group.num_bits]
    elif group.num_bits != 8:
        raise _unsupported(matrix, f"{group.num_bits} bits, each in a byte")
    if group.strategy == "block" and group.block != (BLOCK, BLOCK):
        raise _unsupported(matrix, f"blocks of {group.block[0]} x {group.block[1]}")
    wide = matrix.scale.dtype == "F32" and dtype != "F32"
    return Scaled(
        name,
        dtype,
        code,
        group.strategy,
        numerics="fp32-scales" if wide else "ct-eager",
        group_size=group.group_size if group.strategy == "group" else 0,
        packed=packed,
    )


def _by_scheme(scheme: Scheme, absmax: np.float32 | None, block: Block) -> Rounded:
    """Encoded as if they were a tensor's first rows, so that its own scale is with them."""
    first = Block(block.name, block.dtype, 0, block.raw)
    encoded = scheme.encode(first, absmax, None)
    parts = tuple(np.ascontiguousarray(p).reshape(-1).view(np.uint8) for p in encoded.parts)

    def values() -> Float64:
        return np.asarray(scheme.decode(parts, block.raw.shape), dtype=np.float64)

    return Rounded(values, parts)


def _with_zero_points(bits: int, size: int, block: Block) -> Rounded:
    w = block.float32()
    groups = w.reshape(len(w), -1, size)
    low = np.minimum(groups.min(axis=2, keepdims=True), np.float32(0))
    high = np.maximum(groups.max(axis=2, keepdims=True), np.float32(0))
    top = (1 << bits) - 1
    scales = to_float32(scales_of(high - low, top, block.dtype), block.dtype)
    zero = np.rint(np.clip(-low / scales, 0, top))
    codes = np.clip(np.rint(groups / scales) + zero, 0, top)
    return Rounded(lambda: ((codes - zero).astype(np.float64) * scales).reshape(w.shape))


def _mxfp8(block: Block) -> Rounded:
    grouped = Block(block.name, block.dtype, 0, block.raw.reshape(-1, MXFP4_GROUP))
    scales = _mxfp8_scales(measure_absmax(grouped), block.dtype)
    codes = encode_e4m3(grouped.float32() / scales)
    return Rounded(
        lambda: (decode_e4m3(codes).astype(np.float64) * scales).reshape(block.raw.shape)
    )


def _mxfp8_scales(absmax: Float32, dtype: str) -> Float32:
    """Powers of two that bring the largest magnitude of a group to about the largest E4M3."""
    exponents = power_of_two_exponents(absmax, dtype).astype(np.int32)
    lowered = np.maximum(exponents + _MXFP4_OFFSET - _MXFP8_OFFSET, 0)
    scales: Float32 = np.ldexp(np.float32(1), lowered - _E8M0_BIAS).astype(np.float32)
    return scales
