"""Matrices whose bytes llm-compressor's `oneshot` computes: what it stores for one, and from what.

`ByOneshot` is a scheme for the plan only: its parts are those of a scheme of ours (`layout`), with
packed zero points where codes are not symmetric about 0. It encodes nothing. `text` is the digest
of the calibration text, so that another text makes another fingerprint; `numerics` names the
release of llm-compressor, whose arithmetic decides the bits, on whatever device it ran.

    zero points   (out, in/group) codes of 4 bits, eight rows to a 32-bit word:
                  weight_zero_point I32 (ceil(out / 8), in/group)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.output_tensor import Encoded, Importance, Part, Scheme
from convert.tensor import Block, Float32

_CODES_A_WORD = 8


@dataclass(frozen=True, slots=True)
class ByOneshot:
    """See the module's head."""

    layout: Scheme
    zero_points: bool
    numerics: str
    text: str = ""
    block_rows: int = 1
    needs_reduce: bool = False

    @property
    def name(self) -> str:
        """The target's."""
        return self.layout.name

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """The layout's, and the zero points."""
        found = self.layout.parts(shape, dtype)
        if not self.zero_points:
            return found
        rows, groups = next(part.shape for part in found if part.suffix == "_scale")
        words = -(-rows // _CODES_A_WORD)
        return (*found, Part("_zero_point", "I32", (words, groups), rows, 4 * words * groups))

    def reduce(self, state: Any, block: Block) -> Any:
        """Never called: nothing is computed here."""
        raise AssertionError("llm-compressor computes this")

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """Never called: nothing is computed here."""
        raise AssertionError("llm-compressor computes this")

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """Codes times scales, where codes are symmetric."""
        assert not self.zero_points
        return self.layout.decode(stored, shape)


def by_oneshot(
    name: str,
    dtype: str,
    *,
    numerics: str,
    layout: Callable[..., Scheme],
    zero_points: bool = False,
) -> ByOneshot:
    """The scheme of a target for weights of a source dtype."""
    return ByOneshot(layout(name, dtype), zero_points, numerics)
