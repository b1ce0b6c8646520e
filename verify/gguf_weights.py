"""GGUF weights: is every tensor what quantizing the source's values gives?

In: the 16- or 32-bit reference, a GGUF made from it and, if it was made with one, the importance
matrix. Out: an Outcome that names the worst tensors. No model is run. Each tensor is encoded again
from the source, in row blocks, in the type it has in the file. Equal bytes are the end of it; where
others are, errors are compared (`encoded_again.py`): another version, another machine's float
rounding, an imatrix that is not at hand. `stated_imatrix.py` decides whether the given imatrix is
the file's.

Rows stand still between the two encodings, so Q/K rows that were not permuted, swapped tensors and
a stale shard are errors of the size of the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.families import family_of
from convert.gguf_plan import gguf_outputs
from convert.gguf_reader import GGUFFile, read_gguf
from convert.output_tensor import OutputTensor
from quantize.importance import ImportanceFile, importance_for
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite
from verify.encoded_again import BlockErrors, Deviation, Float64, compare_block, sum_up
from verify.evidence import Evidence
from verify.gguf_rows import Place, as_stored, encode_rows, places_of, stored_rows
from verify.stated_imatrix import choose_imatrix

NAME = "gguf_weights"
_FINDINGS = 10


def check_gguf_weights(evidence: Evidence, /, importance: ImportanceFile | None = None) -> Outcome:
    """Encode every tensor of a GGUF again from the source, and compare."""
    file = read_gguf(evidence.artifact.path)
    source = evidence.reference.checkpoint
    skipped: list[str] = []
    try:
        choice = choose_imatrix(file, importance, source)
        measured = list(measure_gguf(source, file, choice.importance, skipped))
    except InputError as error:
        reason = "the source cannot be encoded in the types that the file has"
        finding = Finding(evidence.artifact.name, str(error))
        return Outcome(NAME, Verdict(State.FAIL, reason), (finding,))
    state, reason, findings = _judge(measured, skipped)
    numbers: dict[str, Number] = {
        "tensors": len(measured),
        "same_bytes": sum(m.same_bytes for m in measured),
        "wrong": sum(m.wrong for m in measured),
        "not_compared": len(skipped),
        "worst_ratio": finite(max((m.ratio for m in measured), default=None)),
        "worst_error": finite(max((m.error for m in measured), default=None)),
        "imatrix": choice.use.value,
    }
    points = tuple(
        Point(m.name, {"error": finite(m.error), "ratio": finite(m.ratio)}) for m in measured
    )
    said = choice.said
    if choice.importance is not None and not said and not all(m.same_bytes for m in measured):
        said = f"the imatrix given, {choice.importance.name!r}, may not be the one it was made with"
    if said:
        reason, findings = f"{reason}; {said}", (*choice.findings, *findings)
    return Outcome(NAME, Verdict(state, reason, numbers), tuple(findings), points)


def _judge(
    measured: Sequence[Deviation], skipped: Sequence[str]
) -> tuple[State, str, tuple[Finding, ...]]:
    wrong = sorted((m for m in measured if m.wrong), key=lambda m: (-m.ratio, -m.row_ratio))
    if wrong:
        reason = f"{len(wrong)} tensors are not what quantizing the source gives"
        return State.FAIL, reason, tuple(Finding(m.name, m.message) for m in wrong[:_FINDINGS])
    other = sorted((m for m in measured if not m.same_bytes), key=lambda m: -m.ratio)
    findings = tuple(Finding(m.name, f"other bytes; {m.message}") for m in other[:_FINDINGS])
    if skipped:
        missing = tuple(
            Finding(name, "its type needs an imatrix: give --imatrix") for name in skipped
        )
        reason = f"{len(skipped)} tensors cannot be encoded again without the imatrix"
        return State.NOT_ENOUGH_EVIDENCE, reason, findings + missing
    if not measured:
        return State.NOT_ENOUGH_EVIDENCE, "no tensor to compare", ()
    reason = f"all {len(measured)} tensors encode to the same bytes"
    if other:
        reason = (
            f"{len(other)} of {len(measured)} tensors have other bytes, with errors like our own"
            f" (at most {other[0].ratio:.2f} times)"
        )
    return State.PASS, reason, findings


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
            tensor = as_stored(output, stored.ggml_type, weights.get(stored.name))
            if tensor is None:
                if skipped is not None:
                    skipped.append(stored.name)
                continue
            look = partial(_look, source, tensor, stored_rows(file, stored, tensor.rows))
            yield sum_up(tensor.name, pool.map(look, places_of(tensor)))


def _look(
    source: Checkpoint, tensor: OutputTensor, stored: NDArray[np.uint8], place: Place
) -> BlockErrors:
    block, ours = encode_rows(source, tensor, place)
    row, rows = place[-1], ours.size // stored.shape[1]
    theirs = np.ascontiguousarray(stored[row : row + rows]).reshape(-1)
    w = block.float32().astype(np.float64).reshape(rows, -1)
    own = _values(tensor, ours, w.shape)
    same = np.array_equal(ours, theirs)
    their = own if same else _values(tensor, theirs, w.shape)
    return compare_block(w, own, their, same=same, row=row)


def _values(tensor: OutputTensor, data: NDArray[np.uint8], shape: tuple[int, ...]) -> Float64:
    decoded: Any = tensor.scheme.decode([data], shape)
    return np.asarray(decoded, dtype=np.float64).reshape(shape)
