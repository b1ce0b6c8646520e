"""Rows of a GGUF's tensors: as they are stored, and encoded again from the source.

In: the source's checkpoint, a tensor as the plan of a GGUF has it, a GGUF. Out: blocks of rows of
both, in the order of the output: whole heads of Q and K are permuted as llama.cpp wants them. A
block holds about `BLOCK_VALUES` values; nothing is compared here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convert.blocks import row_blocks
from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.gguf import GGUFTensor
from convert.gguf_plan import GGUFOutput
from convert.gguf_reader import GGUFFile
from convert.output_tensor import Importance, OutputTensor
from convert.tensor import DTYPES, Block
from quantize.ggml import ABORTS_WITHOUT_IMPORTANCE, Ggml

BLOCK_VALUES = 1 << 18
Place = tuple[int, int, int, int]
"""Source, first row in it, row after the last, output row; source -1 of a computed tensor."""


def as_stored(
    output: GGUFOutput, ggml_type: str, importance: Importance | None
) -> OutputTensor | None:
    """The tensor with the scheme that makes what the file says it holds; None if none can."""
    if ggml_type in DTYPES:
        return replace(output.tensor, scheme=Cast(ggml_type))
    if importance is None and ggml_type in ABORTS_WITHOUT_IMPORTANCE:
        return None
    return replace(output.tensor, scheme=Ggml(ggml_type), importance=importance)


def places_of(tensor: OutputTensor) -> Iterator[Place]:
    """Every block of a tensor; one of heads is kept whole."""
    if not tensor.sources:
        yield -1, 0, tensor.rows, 0
        return
    row = 0
    for number, source in enumerate(tensor.sources):
        rows = source.stop - source.start
        for start, stop in row_blocks(source.tensor, rows, tensor.block_rows, BLOCK_VALUES):
            yield number, source.start + start, source.start + stop, row + start
        row += rows


def encode_rows(
    source: Checkpoint, tensor: OutputTensor, place: Place
) -> tuple[Block, NDArray[np.uint8]]:
    """The source's rows in output order, and their bytes in the tensor's type."""
    number, start, stop, row = place
    block = _read(source, tensor, number, start, stop)
    encoded = tensor.scheme.encode(block, None, tensor.importance_at(row)).parts[0]
    return block, np.ascontiguousarray(encoded).view(np.uint8).reshape(-1)


def stored_rows(file: GGUFFile, tensor: GGUFTensor, rows: int) -> NDArray[np.uint8]:
    """(rows, row bytes) of a tensor, mapped."""
    return np.memmap(
        file.paths[tensor.part],
        dtype=np.uint8,
        mode="r",
        offset=tensor.offset,
        shape=(rows, tensor.size_bytes // rows),
    )


def _read(source: Checkpoint, tensor: OutputTensor, number: int, start: int, stop: int) -> Block:
    """A block of the source in output order; of a computed tensor, its values."""
    if number < 0:
        values = np.array(tensor.computed, dtype=np.float32).reshape(tensor.rows, -1)
        return Block(tensor.name, "F32", 0, values)
    block = source.read_rows(tensor.sources[number].tensor, start, stop)
    if tensor.row_order is None:
        return block
    if len(tensor.shape) == 1:
        order = tensor.row_order.order(block.raw.shape[1])
        return Block(block.name, block.dtype, start, np.ascontiguousarray(block.raw[:, order]))
    return block.permuted(tensor.row_order.order(block.raw.shape[0]))
