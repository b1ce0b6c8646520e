"""Weights as codes times a scale from the largest magnitude: FP8, INT8 and INT4, data-free.

A *unit* of the weight shares one scale: an output channel (a row), a block of 128 x 128, a group of
128 columns of a row, or the whole tensor. With a the unit's largest magnitude, h the code format's
half range, T the dtype of the source weight, RN_T rounding to nearest even into T, and divisions in
float32:

    scale = RN_T(a / h), or T's epsilon where that is 0
    code  = RN_code(clamp(RN_T(w / scale)))

That is `ct-eager`, compressed-tensors 0.19 on the CPU and on GPUs before SM90, equal to
`llmcompressor.model_free_ptq` in every byte. Two other profiles exist. `ct-sm90`: its kernel for
newer GPUs leaves out the rounding of the quotient, which moves about 3 % of FP8 codes by one.
`fp32-scales`: no rounding of the quotient nor of the scale, which is stored as float32; for fp16
sources with tiny rows, whose scale would be subnormal. Both follow the source text; they were not
compared with a GPU. A zero or infinite scale cannot occur; a NaN is refused before it gets here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.output_tensor import Encoded, Importance, Part
from convert.tensor import DTYPES, EPSILON, Array, Block, Float32, round_to, to_float32
from quantize import kernels
from quantize.codes import FORMATS, Codes, code_table, pack_words, unpack_words

NUMERICS = ("ct-eager", "ct-sm90", "fp32-scales")
KERNEL_CODES = ("E4M3", "INT8", "UINT8", "INT4")
BLOCK = 128
"""Rows and columns of a block."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes of the format `code`, one scale for each `unit`: channel, block, group or tensor.

    (out, in) -> weight (out, in) one byte a code, or weight_packed I32 (out, in * bits / 32);
    weight_scale (out, 1), (out/128, in/128), (out, in/group) or (1,). Packed weights need their
    shape beside them: see `Shape`.
    """

    name: str
    dtype: str
    code: str
    unit: str
    numerics: str = "ct-eager"
    group_size: int = 0
    packed: bool = False

    @property
    def block_rows(self) -> int:
        """Blocks must begin where a unit begins."""
        return BLOCK if self.unit == "block" else 1

    @property
    def needs_reduce(self) -> bool:
        """Only a scale for the whole tensor needs all of it first."""
        return self.unit == "tensor"

    @property
    def scale_dtype(self) -> str:
        """The dtype that scales are rounded to and stored in."""
        return "F32" if self.numerics == "fp32-scales" else self.dtype

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """Codes and scales."""
        rows, columns = shape
        width = DTYPES[self.scale_dtype].itemsize
        scale = {
            "channel": Part("_scale", self.scale_dtype, (rows, 1), 1, width),
            "group": self._group_part(rows, columns, width),
            "block": self._block_part(rows, columns, width),
            "tensor": Part("_scale", self.scale_dtype, (1,), rows, width),
        }[self.unit]
        if not self.packed:
            stored = "F8_E4M3" if self.code == "E4M3" else "I8"
            return (Part("", stored, shape, 1, columns), scale)
        words = columns * FORMATS[self.code].bits // 32
        return (Part("_packed", "I32", (rows, words), 1, 4 * words), scale)

    def _group_part(self, rows: int, columns: int, width: int) -> Part:
        groups = columns // self.group_size if self.group_size else 0
        return Part("_scale", self.scale_dtype, (rows, groups), 1, groups * width)

    def _block_part(self, rows: int, columns: int, width: int) -> Part:
        down, across = -(-rows // BLOCK), -(-columns // BLOCK)
        return Part("_scale", self.scale_dtype, (down, across), BLOCK, across * width)

    def reduce(self, state: Any, block: Block) -> Any:
        """The largest magnitude so far."""
        largest = measure_absmax(block).max()
        return largest if state is None else max(state, largest)

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """(rows, columns) values -> the parts; the tensor's own scale goes with its first rows."""
        assert block.dtype == self.dtype, (block.dtype, self)
        rows, columns = block.raw.shape
        units = self._units(block)
        code = FORMATS[self.code]
        absmax = np.array([state]) if self.unit == "tensor" else measure_absmax(units)
        if self.unit == "block":
            absmax = absmax.reshape(-1, BLOCK, -(-columns // BLOCK)).max(axis=1)
        elif self.unit == "group":
            absmax = absmax.reshape(rows, -1)
        scales = scales_of(absmax.astype(np.float32), code.half_range, self.scale_dtype)
        wide = to_float32(scales, self.scale_dtype)
        if self.unit == "block":
            wide = np.repeat(wide, BLOCK, axis=0)
        wide = np.broadcast_to(wide.reshape(-1, 1), (len(units.raw), 1))
        rounded = self.dtype if self.numerics == "ct-eager" else "F32"
        codes = encode_codes(units, wide, self.code, rounded)
        if self.unit == "block":
            codes = codes.reshape(-1, -(-columns // BLOCK) * BLOCK)[:rows, :columns]
        codes = codes.reshape(rows, columns)
        if self.unit == "tensor" and block.first_row:
            scales = scales[:0]
        return Encoded((pack_words(codes, code.bits) if self.packed else codes, scales))

    def _units(self, block: Block) -> Block:
        """The block as rows that have one scale each: its own, groups, or rows of tiles."""
        rows, columns = block.raw.shape
        raw = block.raw
        if self.unit == "group":
            raw = raw.reshape(-1, self.group_size)
        elif self.unit == "block":
            height, width = -rows % BLOCK, -columns % BLOCK
            if height or width:
                raw = np.pad(raw, ((0, height), (0, width)))
            raw = raw.reshape(-1, BLOCK)
        return Block(block.name, block.dtype, block.first_row, raw)

    def _spread(self, scales: Float32, rows: int, columns: int) -> Float32:
        """Scales in a shape that broadcasts against (rows, columns)."""
        if self.unit in ("channel", "tensor"):
            return scales.reshape(-1, 1)
        if self.unit == "group":
            return np.repeat(scales, self.group_size, axis=1)
        return np.repeat(np.repeat(scales, BLOCK, axis=0)[:rows], BLOCK, axis=1)[:, :columns]

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """codes * scales, in float32."""
        rows, columns = shape
        code = FORMATS[self.code]
        _, part = self.parts(shape, self.dtype)
        raw = stored[1].reshape(-1).view(DTYPES[self.scale_dtype].storage)
        scales = to_float32(raw, self.scale_dtype).reshape(part.shape)
        codes = stored[0].reshape(-1)
        if self.packed:
            codes = unpack_words(codes.view("<u4").reshape(rows, -1), code.bits)
        return code.decode(codes.reshape(shape)) * self._spread(scales, rows, columns)


@dataclass(frozen=True, slots=True)
class Shape:
    """The rows and columns of a packed weight, a computed tensor: (1, 2) float32 -> I64 (2,)."""

    name: str = "I64"
    numerics: str = "exact"
    block_rows: int = 1
    needs_reduce: bool = False

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """One part."""
        return (Part("_shape", "I64", shape, 1, 16),)

    def reduce(self, state: Any, block: Block) -> Any:
        """Never called: it comes from no weight."""
        raise AssertionError("a shape has no reduction")

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """Whole numbers, exactly (dimensions are far below 2^24)."""
        return Encoded((block.float32().astype("<i8"),))

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """The two numbers."""
        return stored[0].reshape(-1).view("<i8").astype(np.float32)


@cache
def kernel_build(dtype: str) -> str | None:
    """The build of our kernels that makes numpy's codes from this dtype; None if none does."""
    build = kernels.build()
    if build is None:
        return None
    random = np.random.default_rng(0)
    values = random.standard_t(3, (9, 200)).astype(np.float32)
    values[::3] *= np.geomspace(1e-6, 1e3, 200, dtype=np.float32)
    block = Block("trial", dtype, 0, round_to(values, dtype))
    absmax = absmax_by_numpy(block)
    same = np.array_equal(kernels.measure_absmax(build, block), absmax)
    for code, rounded in product(KERNEL_CODES, {dtype, "F32"}):
        scales = to_float32(scales_of(absmax, FORMATS[code].half_range, dtype), dtype)
        ours = kernels.encode_codes(build, block, scales, code, rounded)
        same = same and np.array_equal(ours, codes_by_numpy(block, scales, code, rounded))
    if same:
        return build
    warnings.warn(
        f"the {build} kernels for FP8 and integers differ from numpy, which is used instead",
        stacklevel=2,
    )
    return None


def measure_absmax(block: Block) -> Float32:
    """(rows, 1) largest magnitudes of the rows."""
    build = kernel_build(block.dtype)
    return absmax_by_numpy(block) if build is None else kernels.measure_absmax(build, block)


def absmax_by_numpy(block: Block) -> Float32:
    """The same, on machines without the kernels."""
    if block.dtype == "F32":
        return np.asarray(np.abs(block.raw).max(axis=1, keepdims=True), dtype=np.float32)
    # Magnitudes of 16-bit floats are ordered as their bits without the sign.
    bits = (block.raw.view(np.uint16) & np.uint16(0x7FFF)).max(axis=1, keepdims=True)
    return to_float32(bits.view(DTYPES[block.dtype].storage), block.dtype)


def encode_codes(block: Block, scales: Float32, code: str, rounded: str) -> Codes:
    """Codes of rows / scales (rows, 1), the quotients rounded to the dtype `rounded` first."""
    build = kernel_build(block.dtype)
    if build is None:
        return codes_by_numpy(block, scales, code, rounded)
    return kernels.encode_codes(build, block, scales, code, rounded)


def codes_by_numpy(block: Block, scales: Float32, code: str, rounded: str) -> Codes:
    """The same, on machines without the kernels."""
    quotient = block.float32() / scales
    if rounded == "F32":
        return FORMATS[code].encode(quotient)
    return code_table(code, rounded)[round_to(quotient, rounded).view(np.uint16)]


def scales_of(absmax: Float32, half_range: float, dtype: str) -> Array:
    """Scales in the storage dtype of `dtype`; its epsilon where the quotient is 0."""
    scales = round_to(absmax / np.float32(half_range), dtype)
    epsilon = round_to(np.array([EPSILON[dtype]], dtype=np.float32), dtype)
    return np.where(scales == 0, epsilon, scales)
