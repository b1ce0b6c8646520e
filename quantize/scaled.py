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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.output_tensor import Encoded, Importance, Part
from convert.tensor import DTYPES, EPSILON, Array, Block, Float32, round_to, to_float32
from quantize.codes import FORMATS, Codes, code_table, pack_words, unpack_words

NUMERICS = ("ct-eager", "ct-sm90", "fp32-scales")
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
        largest = block_absmax(block, axis=(0, 1)).max()
        return largest if state is None else max(state, largest)

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """(rows, columns) values -> the parts; the tensor's own parts go with its first rows."""
        assert block.dtype == self.dtype, (block.dtype, self)
        rows, columns = block.raw.shape
        absmax = self._absmax(block, state)
        scales = scales_of(absmax, FORMATS[self.code].half_range, self.scale_dtype)
        spread = self._spread(to_float32(scales, self.scale_dtype), rows, columns)
        codes = self._codes(block, spread)
        if self.unit == "tensor" and block.first_row:
            scales = scales[:0]
        if not self.packed:
            return Encoded((codes, scales))
        return Encoded((pack_words(codes, FORMATS[self.code].bits), scales))

    def _absmax(self, block: Block, state: Any) -> Float32:
        """The largest magnitude of every unit in the block, in the shape of the stored scales."""
        rows, columns = block.raw.shape
        if self.unit == "tensor":
            return np.array([state], dtype=np.float32)
        if self.unit == "channel":
            return block_absmax(block, axis=(1,))
        if self.unit == "group":
            grouped = Block(block.name, block.dtype, 0, block.raw.reshape(-1, self.group_size))
            return block_absmax(grouped, axis=(1,)).reshape(rows, -1)
        down, across = -(-rows // BLOCK), -(-columns // BLOCK)
        padded = np.zeros((down * BLOCK, across * BLOCK), dtype=block.raw.dtype)
        padded[:rows, :columns] = block.raw
        tiles = padded.reshape(down, BLOCK, across, BLOCK)
        return block_absmax(Block(block.name, block.dtype, 0, tiles), axis=(1, 3))

    def _spread(self, scales: Float32, rows: int, columns: int) -> Float32:
        """Scales in a shape that broadcasts against (rows, columns)."""
        if self.unit in ("channel", "tensor"):
            return scales.reshape(-1, 1)
        if self.unit == "group":
            return np.repeat(scales, self.group_size, axis=1)
        return np.repeat(np.repeat(scales, BLOCK, axis=0)[:rows], BLOCK, axis=1)[:, :columns]

    def _codes(self, block: Block, scales: Float32) -> Codes:
        quotient = block.float32() / scales
        if self.numerics != "ct-eager":
            return FORMATS[self.code].encode(quotient)
        rounded = round_to(quotient, block.dtype)
        if block.dtype == "F32":
            return FORMATS[self.code].encode(rounded.astype(np.float32))
        return code_table(self.code, block.dtype)[rounded.view(np.uint16)]

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


def block_absmax(block: Block, axis: tuple[int, ...]) -> Float32:
    """Largest magnitudes over `axis`, which is kept only where it is the last of two."""
    keep = axis == (1,)
    if block.dtype == "F32":
        return np.asarray(np.abs(block.raw).max(axis=axis, keepdims=keep), dtype=np.float32)
    # Magnitudes of 16-bit floats are ordered as their bits without the sign.
    bits = (block.raw.view(np.uint16) & np.uint16(0x7FFF)).max(axis=axis, keepdims=keep)
    return to_float32(np.asarray(bits).view(DTYPES[block.dtype].storage), block.dtype)


def scales_of(absmax: Float32, half_range: float, dtype: str) -> Array:
    """Scales in the storage dtype of `dtype`; its epsilon where the quotient is 0."""
    scales = round_to(absmax / np.float32(half_range), dtype)
    epsilon = round_to(np.array([EPSILON[dtype]], dtype=np.float32), dtype)
    return np.where(scales == 0, epsilon, scales)
