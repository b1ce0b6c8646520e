"""What is to be written for one tensor, and how its values are stored: `OutputTensor`, `Scheme`.

Every container and every number format meets here. An output tensor is made of rows of checkpoint
tensors (one of them, a slice of one, or many stacked), put in an order (the Q/K permutation), and
stored by a scheme as one or more *parts*: the weight, its scales. A scheme sees one block of rows
at a time and is pure: rows in, bytes out. Because each part says how many of its bytes a number of
rows fills, every block has a fixed place in the file before any weight is read, and blocks can be
encoded on any thread, in any order, and again.

A scheme that must see a whole tensor first (one scale for all of it) sets `needs_reduce`; `reduce`
is then called over every block of every tensor of the `group` before the first `encode`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convert.tensor import Block, Float32, TensorInfo


@dataclass(frozen=True, slots=True)
class Part:
    """One stored array of an output tensor.

    `suffix` is appended to the tensor's name, `dtype` is spelled as the container does, and
    `rows_per_step` rows of the tensor fill `step_bytes` bytes of the part.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    rows_per_step: int
    step_bytes: int

    def offset(self, row: int) -> int:
        """Where the bytes of `row` begin; rows must be asked for at multiples of the step."""
        assert row % self.rows_per_step == 0, (row, self)
        return row // self.rows_per_step * self.step_bytes

    def size_bytes(self, rows: int) -> int:
        """Bytes of `rows` rows; a last, incomplete step counts whole."""
        return -(-rows // self.rows_per_step) * self.step_bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """The bytes of one block, one array per part, and how many values a lossy cast changed."""

    parts: tuple[NDArray[Any], ...]
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Importance:
    """Weights per column for the quantizers that take them (an imatrix); identified by digest.

    `values` is (matrices, columns): one row, or one for each stacked expert.
    """

    digest: str
    values: Float32 = field(compare=False)


class Scheme(Protocol):
    """How values are stored. Implementations are frozen dataclasses: equal means same bytes."""

    @property
    def name(self) -> str:
        """The field's name for it: `Q4_K`, `FP8_DYNAMIC`, `BF16`."""
        ...

    @property
    def numerics(self) -> str:
        """The named profile that decides the bits, recorded with every artifact."""
        ...

    @property
    def block_rows(self) -> int:
        """Blocks start at multiples of this many rows."""
        ...

    @property
    def needs_reduce(self) -> bool:
        """Whether `reduce` must see every block of the group before `encode`."""
        ...

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """The arrays stored for a tensor of this shape and source dtype."""
        ...

    def reduce(self, state: Any, block: Block) -> Any:
        """Fold one block into the group's state (None at first)."""
        ...

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """Store one block of whole rows; TensorError when a value does not fit."""
        ...

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """Values of a whole stored tensor, from the bytes of its parts."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """Rows `start` to `stop` of one checkpoint tensor."""

    tensor: TensorInfo
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class HeadInterleave:
    """The row order llama.cpp wants for Q and K: within each head, halves interleaved.

    Hugging Face rotates (x[i], x[i + head_rows/2]), llama.cpp's Llama graph (x[2i], x[2i + 1]).
    Row `h*head_rows + 2*i + half` of the output is row `h*head_rows + half*head_rows/2 + i` of the
    source: whole heads stay in place, so a block of whole heads is permuted on its own.
    """

    head_rows: int

    def order(self, rows: int) -> NDArray[np.intp]:
        """Source row of each output row, for `rows` rows that begin at a head."""
        heads = np.arange(rows, dtype=np.intp).reshape(-1, 2, self.head_rows // 2)
        return heads.swapaxes(1, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of one output file.

    `shape` is row-major; `sources` are concatenated along the rows; a computed tensor has no
    sources but `computed`, its float32 values. `group` names the tensors that share a reduction.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme
    sources: tuple[Source, ...] = ()
    row_order: HeadInterleave | None = None
    group: str = ""
    importance: Importance | None = None
    computed: tuple[float, ...] = ()

    @property
    def rows(self) -> int:
        """Rows over all sources."""
        return math.prod(self.shape[:-1])

    @property
    def parts(self) -> tuple[Part, ...]:
        """The arrays that the scheme stores for this tensor."""
        return self.scheme.parts(self.shape, self.dtype)

    @property
    def block_rows(self) -> int:
        """Blocks of this tensor start at multiples of this many rows."""
        heads = self.row_order.head_rows if self.row_order else 1
        return math.lcm(self.scheme.block_rows, heads)

    def importance_at(self, row: int) -> Importance | None:
        """The column weights for the matrix that `row` is in: each stacked expert has its own."""
        if self.importance is None or len(self.importance.values) == 1:
            return self.importance
        expert = row // (self.rows // len(self.importance.values))
        return Importance(self.importance.digest, self.importance.values[expert : expert + 1])

    def reduction_key(self) -> tuple[object, str]:
        """Tensors with equal keys share one reduction: their group's, or their own."""
        return self.scheme, self.group or self.name

    def encoding_key(self) -> tuple[object, ...]:
        """Tensors with equal keys have equal bytes, in whichever file they go."""
        how = (self.row_order, self.scheme, self.importance, self.group)
        return (self.sources, self.computed, *how)
