"""The values of a quantized matrix as its folder stores them, in blocks of rows.

In: a folder's tensors and the config group that stores a module. Out: the stored bytes of rows, and
what they stand for:

    (code - zero point) * scale / global scale

Codes are E4M3, 8-bit integers, packed integers (offset binary, the first in the low bits) or packed
E2M1. Scales are floats, E4M3 (NVFP4, under the global scale) or powers of two (E8M0). A scale
covers the tensor, a row, a block of rows and columns, or a group of columns; with `weight_g_idx`,
column i is of group g_idx[i] (GPTQ that reorders columns and stores how). Zero points of packed
weights are packed themselves, down the rows: word (j, g) holds those of rows j * 32 / bits on.

This reads what any tool wrote, and shares no code with what writes: of scales only the rows that a
block needs are read, of zero points and order all, 1/256 of the matrix or so. Nothing is judged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.errors import TensorError, UnsupportedError
from convert.tensor import SOURCE_DTYPES, Array, TensorInfo, to_float32
from quantize.codes import E2M1, unpack_nibbles, unpack_words
from quantize.fp8 import decode_e4m3
from verify.layouts import layout_of, parts_of, stored_columns
from verify.quantization import Group

Float64 = NDArray[np.float64]
Bytes = NDArray[np.uint8]
_E8M0_BIAS, _E8M0_NAN = 127, 255
_PACKED_BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix (out, in) in a folder; `order` is the group of each column, if that is stored."""

    folder: Checkpoint
    group: Group
    shape: tuple[int, int]
    weight: TensorInfo
    scale: TensorInfo
    zero_points: Float64 | None = None
    order: NDArray[np.intp] | None = None
    shared: float = 1.0

    @property
    def step(self) -> int:
        """Blocks must begin at multiples of this many rows, where a row of scales begins."""
        return self.group.block[0] if self.group.strategy == "block" else 1

    def stored(self, start: int, stop: int) -> tuple[Bytes, ...]:
        """The bytes of rows: codes, the scales that cover them, the global scale if there is one.

        Without zero points and order, which no encoding of ours has.
        """
        first, last = self._scale_rows(start, stop)
        parts: list[Array] = [
            self.folder.read_rows(self.weight, start, stop).raw,
            self.folder.read_rows(self.scale, first, last).raw,
        ]
        if self.group.format == "nvfp4-pack-quantized":
            parts.append(np.array([self.shared], dtype=np.float32))
        return tuple(np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts)

    def values(self, start: int, stop: int) -> Float64:
        """(stop - start, in) values of rows."""
        codes = self._codes(self.folder.read_rows(self.weight, start, stop).raw)
        first, last = self._scale_rows(start, stop)
        scales = self._scales(self.folder.read_rows(self.scale, first, last).raw)
        rows = np.arange(start, stop) // self._rows_each - first
        if self.zero_points is not None:
            codes = codes - self._across(self.zero_points[first:last][rows])
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            found: Float64 = codes * self._across(scales[rows]) / self.shared
        return found

    @property
    def _rows_each(self) -> int:
        """Rows that one row of scales covers."""
        return {"tensor": self.shape[0], "block": self.step}.get(self.group.strategy, 1)

    def _scale_rows(self, start: int, stop: int) -> tuple[int, int]:
        return start // self._rows_each, -(-stop // self._rows_each)

    def _codes(self, raw: Array) -> Float64:
        """Stored items as the numbers that scales multiply."""
        if self.weight.dtype == "F8_E4M3":
            return decode_e4m3(raw.view(np.uint8)).astype(np.float64)
        if self.weight.dtype == "U8":
            codes = unpack_nibbles(np.ascontiguousarray(raw).view(np.uint8))
            return E2M1.decode(codes[:, : self.shape[1]]).astype(np.float64)
        if self.weight.dtype == "I32":
            bits = self.group.num_bits
            words = np.ascontiguousarray(raw).view(np.uint32)
            codes = unpack_words(words, bits)[:, : self.shape[1]]
            return codes.astype(np.float64) - (1 << (bits - 1))
        return raw.astype(np.float64)

    def _scales(self, raw: Array) -> Float64:
        if self.scale.dtype in SOURCE_DTYPES:
            return to_float32(raw, self.scale.dtype).astype(np.float64)
        codes = raw.view(np.uint8)
        if self.scale.dtype == "F8_E4M3":
            return decode_e4m3(codes).astype(np.float64)
        powers = np.ldexp(1.0, codes.astype(np.int32) - _E8M0_BIAS)
        return np.where(codes == _E8M0_NAN, np.nan, powers)

    def _across(self, units: Float64) -> Float64:
        """One number a unit -> one a column, or something that broadcasts."""
        if self.order is not None:
            return units[:, self.order]
        if units.shape[1] == 1:
            return units
        blocks = self.group.strategy == "block"
        width = self.group.block[1] if blocks else self.group.group_size
        return np.repeat(units, width, axis=1)[:, : self.shape[1]]


def open_matrix(
    folder: Checkpoint, module: str, group: Group, shape: tuple[int, int]
) -> StoredMatrix:
    """The matrix (out, in) of a module.

    TensorError where a part is missing or has no form that the group's words allow;
    UnsupportedError for a form that is not read here.
    """
    layout = layout_of(group)
    if layout is None:
        raise UnsupportedError(
            f"{module}: {group.format}, strategy {group.strategy}: not read here"
        )
    weight = _part(folder, f"{module}.{layout.weight}", layout.weight_dtypes)
    if weight.dtype == "I32" and group.num_bits not in _PACKED_BITS:
        raise UnsupportedError(f"{module}: packed integers of {group.num_bits} bits: not read here")
    width = stored_columns(layout, group, shape[1])
    if weight.shape != (shape[0], width):
        raise TensorError(
            f"{weight.name}: shape {list(weight.shape)}; expected {[shape[0], width]}"
        )
    parts = {}
    for part in parts_of(group, shape):
        if part.required or f"{module}.{part.suffix}" in folder.tensors:
            info = _part(folder, f"{module}.{part.suffix}", part.dtypes)
            if info.shape not in part.shapes:
                expected = " or ".join(str(list(one)) for one in part.shapes)
                raise TensorError(f"{info.name}: shape {list(info.shape)}; expected {expected}")
            parts[part.suffix] = info
    shared = parts.get("weight_global_scale")
    return StoredMatrix(
        folder=folder,
        group=group,
        shape=shape,
        weight=weight,
        scale=parts[layout.scale],
        zero_points=_zero_points(folder, parts.get("weight_zero_point"), group, shape[0]),
        order=_order(folder, parts.get("weight_g_idx"), parts[layout.scale]),
        shared=float(folder.read_rows(shared, 0, 1).raw.reshape(-1)[0]) if shared else 1.0,
    )


def _part(folder: Checkpoint, name: str, dtypes: tuple[str, ...]) -> TensorInfo:
    info = folder.tensors.get(name)
    if info is None or info.dtype not in dtypes:
        found = info.dtype if info else "missing"
        raise TensorError(f"{name}: {found}; expected {' or '.join(dtypes)}")
    return info


def _zero_points(
    folder: Checkpoint, info: TensorInfo | None, group: Group, rows: int
) -> Float64 | None:
    """(rows, groups), in the numbers that codes are in; None where codes are symmetric."""
    if info is None:
        return None
    raw = folder.read_rows(info, 0, info.rows).raw
    if info.dtype != "I32":
        return raw.astype(np.float64)
    words = np.ascontiguousarray(raw.view(np.uint32).T)  # (groups, words down the rows)
    codes = unpack_words(words, group.num_bits).reshape(len(words), -1)[:, :rows]
    return codes.T.astype(np.float64) - (1 << (group.num_bits - 1))


def _order(
    folder: Checkpoint, info: TensorInfo | None, scale: TensorInfo
) -> NDArray[np.intp] | None:
    """The group of each column. TensorError for one that has no scale."""
    if info is None:
        return None
    order = folder.read_rows(info, 0, info.rows).raw.reshape(-1).astype(np.intp)
    groups = scale.columns
    if order.size and not (order.min() >= 0 and order.max() < groups):
        wrong = order[(order < 0) | (order >= groups)][0]
        raise TensorError(f"{info.name}: holds {wrong}; expected groups from 0 to {groups - 1}")
    return order
