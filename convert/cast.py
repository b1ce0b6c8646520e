"""The schemes that change form only: store values as F32, F16 or BF16.

A target that holds the source's dtype keeps every value: the same dtype is a copy of bytes, and
float32 holds both 16-bit kinds. BF16 and F16 do not hold each other (8 exponent bits against 5, 7
fraction bits against 10): such a cast counts the values it changed, and a value that would become
infinite is an error. Source dtype and target decide the bits alone (round to nearest even), so the
numerics profile is `ieee754`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import TensorError
from convert.output_tensor import Encoded, Importance, Part
from convert.tensor import DTYPES, Block, Float32, finite_mask, round_to, to_float32


@dataclass(frozen=True, slots=True)
class Cast:
    """Store values as `name`: one of F32, F16, BF16."""

    name: str
    numerics: str = "ieee754"
    block_rows: int = 1
    needs_reduce: bool = False

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """One part of the tensor's own shape."""
        columns = shape[-1] if shape else 1
        return (Part("", self.name, shape, 1, columns * DTYPES[self.name].itemsize),)

    def reduce(self, state: Any, block: Block) -> Any:
        """Never called: a cast needs no reduction."""
        raise AssertionError("a cast has no reduction")

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """Copy or round one block; counts changed values, raises TensorError on overflow."""
        if block.dtype == self.name:
            return Encoded((block.raw,))
        values = block.float32()
        stored = round_to(values, self.name)
        if self.name == "F32":
            return Encoded((stored,))
        finite = finite_mask(stored, self.name)
        if not finite.all():
            row, column = (int(index) for index in np.argwhere(~finite)[0])
            raise TensorError(
                f"{block.name}: {values[row, column]:g} at row {block.first_row + row}, column"
                f" {column} overflows {self.name}; use BF16 or F32"
            )
        return Encoded((stored,), int(np.count_nonzero(to_float32(stored, self.name) != values)))

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """The stored values, widened."""
        raw = stored[0].view(DTYPES[self.name].storage)
        return to_float32(raw, self.name).reshape(shape)
