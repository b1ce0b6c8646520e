"""GGUF weights: is every tensor what quantizing the source's values gives?

In: the 16- or 32-bit reference, a GGUF made from it and, if it was made with one, the importance
matrix. Out: an Outcome that names the worst tensors. No model is run. Each tensor is encoded again
from the source, in row blocks, in the type it has in the file. Equal bytes are the end of it.

Other bytes are not yet wrong: another version, another machine's float rounding, an imatrix that is
not at hand. Then errors are compared, root of the summed squares over that of the source's values:

    whole tensor   at most 1.25 times that of our own encoding
    any one row    at most 3 times that of our own encoding, as a shifted scale in one row of
                   thousands hardly moves the whole

Rows stand still between the two encodings, so Q/K rows that were not permuted, swapped tensors and
a stale shard are errors of the size of the weights themselves. 1.25 is what imatrix weighting costs
in unweighted error at two bits, with room; it is a gate against damage, not between quantizers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.blocks import row_blocks
from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.families import family_of
from convert.gguf_plan import GGUFOutput, gguf_outputs
from convert.gguf_reader import GGUFFile, read_gguf
from convert.output_tensor import Importance, OutputTensor
from convert.tensor import DTYPES, Block
from quantize.ggml import ABORTS_WITHOUT_IMPORTANCE, Ggml
from quantize.importance import ImportanceFile, importance_for
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite
from verify.evidence import Evidence

NAME = "gguf_weights"
WHOLE_LIMIT, ROW_LIMIT = 1.25, 3.0
BLOCK_VALUES = 1 << 18
_FINDINGS = 10
_TINY = 1e-7
"""Relative error that float32 arithmetic leaves in any decoder; below it nothing is compared."""
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Deviation:
    """How a tensor's stored values differ from the source's, beside what encoding it again gives.

    `ratio` and `row_ratio` are the error over our own, of the whole and of the worst row.
    """

    name: str
    same_bytes: bool
    error: float
    ratio: float
    row_ratio: float
    worst_row: int

    @property
    def wrong(self) -> bool:
        """Whether it is beyond what another quantizer may do."""
        return self.ratio > WHOLE_LIMIT or self.row_ratio > ROW_LIMIT


def check_gguf_weights(evidence: Evidence, /, importance: ImportanceFile | None = None) -> Outcome:
    """Encode every tensor of a GGUF again from the source, and compare."""
    file = read_gguf(evidence.artifact.path)
    skipped: list[str] = []
    try:
        measured = list(measure_gguf(evidence.reference.checkpoint, file, importance, skipped))
    except InputError as error:
        reason = "the source cannot be encoded in the types that the file has"
        finding = Finding(evidence.artifact.name, str(error))
        return Outcome(NAME, Verdict(State.FAIL, reason), (finding,))
    wrong = sorted((m for m in measured if m.wrong), key=lambda m: (-m.ratio, -m.row_ratio))
    other = sorted((m for m in measured if not m.same_bytes), key=lambda m: -m.ratio)
    numbers: dict[str, Number] = {
        "tensors": len(measured),
        "same_bytes": sum(m.same_bytes for m in measured),
        "wrong": len(wrong),
        "not_compared": len(skipped),
        "worst_ratio": finite(max((m.ratio for m in measured), default=None)),
        "worst_error": finite(max((m.error for m in measured), default=None)),
    }
    points = tuple(
        Point(m.name, {"error": finite(m.error), "ratio": finite(m.ratio)}) for m in measured
    )
    if wrong:
        reason = f"{len(wrong)} tensors are not what quantizing the source gives"
        findings = tuple(Finding(m.name, _message(m)) for m in wrong[:_FINDINGS])
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), findings, points)
    findings = tuple(Finding(m.name, f"other bytes; {_message(m)}") for m in other[:_FINDINGS])
    if skipped:
        findings += tuple(
            Finding(name, "its type needs an imatrix: give --imatrix") for name in skipped
        )
        reason = f"{len(skipped)} tensors cannot be encoded again without the imatrix"
        verdict = Verdict(State.NOT_ENOUGH_EVIDENCE, reason, numbers)
        return Outcome(NAME, verdict, findings, points)
    if not measured:
        return Outcome(NAME, Verdict(State.NOT_ENOUGH_EVIDENCE, "no tensor to compare", numbers))
    reason = f"all {len(measured)} tensors encode to the same bytes"
    if other:
        reason = (
            f"{len(other)} of {len(measured)} tensors have other bytes, with errors like our own"
            f" (at most {other[0].ratio:.2f} times)"
        )
    return Outcome(NAME, Verdict(State.PASS, reason, numbers), findings, points)


def _message(found: Deviation) -> str:
    return (
        f"relative error {found.error:.3g}, {found.ratio:.3g} times that of encoding it again"
        f" (limit {WHOLE_LIMIT}); row {found.worst_row} {found.row_ratio:.3g} times"
        f" (limit {ROW_LIMIT:g})"
    )


def measure_gguf(
    source: Checkpoint,
    file: GGUFFile,
    importance: ImportanceFile | None = None,
    skipped: list[str] | None = None,
) -> Iterator[Deviation]:
    """Every tensor of the source that the file has in the source's shape, in the source's order."""
    outputs = gguf_outputs(
        source.spec, family_of(source.spec).recognise(source.spec, source.tensors)
    )
    weights = importance_for(importance, outputs) if importance else {}
    source.open_shards()
    with ThreadPoolExecutor() as pool:
        for output in outputs:
            stored = file.tensors.get(output.tensor.name)
            if stored is None or stored.shape != output.tensor.shape:
                continue  # the structure check names it
            tensor = _as_stored(output, stored.ggml_type, weights.get(stored.name))
            if tensor is None:
                if skipped is not None:
                    skipped.append(stored.name)
                continue
            data = np.memmap(
                file.paths[stored.part],
                dtype=np.uint8,
                mode="r",
                offset=stored.offset,
                shape=(tensor.rows, stored.size_bytes // tensor.rows),
            )
            look = partial(_look, source, tensor, data)
            yield _sum_up(tensor, list(pool.map(look, *zip(*_blocks(tensor), strict=True))))


def _as_stored(
    output: GGUFOutput, ggml_type: str, importance: Importance | None
) -> OutputTensor | None:
    """The tensor with the scheme that makes what the file says it holds; None if none can."""
    if ggml_type in DTYPES:
        return replace(output.tensor, scheme=Cast(ggml_type))
    if importance is None and ggml_type in ABORTS_WITHOUT_IMPORTANCE:
        return None
    return replace(output.tensor, scheme=Ggml(ggml_type), importance=importance)


def _blocks(tensor: OutputTensor) -> Iterator[tuple[int, int, int, int]]:
    """(source, first row in it, last, output row) of every block; one of heads is kept whole."""
    if not tensor.sources:
        yield -1, 0, tensor.rows, 0
        return
    row = 0
    for number, source in enumerate(tensor.sources):
        rows = source.stop - source.start
        for start, stop in row_blocks(source.tensor, rows, tensor.block_rows, BLOCK_VALUES):
            yield number, source.start + start, source.start + stop, row + start
        row += rows


@dataclass(frozen=True, slots=True)
class _Part:
    """One block: whether its bytes are equal, squared sums, and the worst row's ratio."""

    same: bool
    theirs: float
    ours: float
    values: float
    row_ratio: float
    row: int


def _look(
    source: Checkpoint,
    tensor: OutputTensor,
    stored: NDArray[np.uint8],
    number: int,
    start: int,
    stop: int,
    row: int,
) -> _Part:
    block = _read(source, tensor, number, start, stop)
    encoded = tensor.scheme.encode(block, None, tensor.importance_at(row)).parts[0]
    ours = np.ascontiguousarray(encoded).view(np.uint8).reshape(-1)
    rows = ours.size // stored.shape[1]
    theirs = np.ascontiguousarray(stored[row : row + rows]).reshape(-1)
    w = block.float32().astype(np.float64).reshape(rows, -1)
    by_row = np.square(w).sum(axis=1)
    our_error = _squares(tensor, ours, w)
    if np.array_equal(ours, theirs):
        return _Part(True, our_error.sum(), our_error.sum(), by_row.sum(), 1.0, row)
    their_error = _squares(tensor, theirs, w)
    floor = _TINY * np.sqrt(by_row) + np.finfo(np.float64).tiny
    ratios = np.sqrt(their_error) / np.maximum(np.sqrt(our_error), floor)
    worst = int(ratios.argmax())
    total = by_row.sum()
    return _Part(
        False, their_error.sum(), our_error.sum(), total, float(ratios[worst]), row + worst
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


def _squares(tensor: OutputTensor, data: NDArray[np.uint8], w: Float64) -> Float64:
    """Squared error of every row; infinite where a stored value is no number."""
    decoded: Any = tensor.scheme.decode([data], w.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(np.asarray(decoded, dtype=np.float64).reshape(w.shape) - w).sum(axis=1)
    return np.where(np.isnan(squares), np.inf, squares)


def _sum_up(tensor: OutputTensor, parts: list[_Part]) -> Deviation:
    theirs = math.sqrt(sum(part.theirs for part in parts))
    ours = math.sqrt(sum(part.ours for part in parts))
    values = math.sqrt(sum(part.values for part in parts)) or 1.0
    worst = max(parts, key=lambda part: part.row_ratio)
    same = all(part.same for part in parts)
    return Deviation(
        name=tensor.name,
        same_bytes=same,
        error=theirs / values,
        ratio=1.0 if same else theirs / max(ours, _TINY * values),
        row_ratio=worst.row_ratio,
        worst_row=worst.row,
    )
