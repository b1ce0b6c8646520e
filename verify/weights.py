"""Weights of a folder: is every tensor what storing the source's values can have left?

In: the 16- or 32-bit reference and a folder made from it, in 16 bits or of compressed-tensors, read
together in row blocks. Out: an Outcome that names the worst ten tensors. No model is run. A tensor
that was not quantized must be the source's to the bit; a matrix in FP8 must lie within its rounding
(`rounding.py`); one of any other scheme is encoded again from the source, and must have the same
bytes, or errors like our own (`encoded_again.py`). `folder_weights.py` compares, `rescaled.py`
takes out scales that were moved between layers before rounding.

What cannot be compared is named and leaves the check undecided: matrices in forms that are not read
here, layers of a mixture of experts with scales moved between them, GPTQ under scales of another
rule. Scales that come from data
(`input_scale`, `k_scale`) are not derived from weights; the check `scales` looks at them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from convert.checkpoint import Checkpoint
from convert.errors import InputError, TensorError, UnsupportedError
from convert.workers import cores
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite
from verify.evidence import Evidence
from verify.folder_weights import Compared, Folder
from verify.gguf_weights import NAME as GGUF
from verify.rescaled import explain

NAME = "weights"
_FINDINGS = 10
_NO_MORE_THAN_GPTQ = (
    "config.json speaks of GPTQ, which may leave so much, but the scales are not those of rounding"
    " to nearest: nothing tells it from damage"
)
_OF_EXPERTS = "its layer's norms differ too: scales may have been moved, which no expert shows"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All tensors of the source that could be compared, in its order; why others could not.

    `broken` are not there in the form that config.json states, `left_out` in one not read here.
    """

    tensors: tuple[Compared, ...]
    broken: Mapping[str, str]
    left_out: Mapping[str, str]


def check_weights(evidence: Evidence, /) -> Outcome:
    """Hold every weight of a folder against the source's."""
    source = evidence.reference.checkpoint
    try:
        with Checkpoint.open(evidence.artifact.path) as stored:
            found = compare_folder(source, stored)
    except InputError as error:
        finding = Finding(evidence.artifact.name, str(error))
        return Outcome(NAME, Verdict(State.FAIL, "it cannot be read"), (finding,))
    numbers = _numbers(found)
    points = tuple(Point(c.name, {"ratio": finite(c.ratio)}) for c in found.tensors if c.matrix)
    wrong = sorted((c for c in found.tensors if c.wrong), key=lambda c: -c.ratio)
    findings = [Finding(name, why) for name, why in found.broken.items()]
    findings += [Finding(c.name, c.message) for c in wrong]
    if findings:
        reason = f"{len(findings)} tensors are not what storing the source's values leaves"
        shown = tuple(findings[:_FINDINGS])
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), shown, points)
    other = [c for c in found.tensors if c.again is not None and not c.same_bytes]
    other.sort(key=lambda c: -c.ratio)
    findings = [Finding(c.name, f"other bytes; {c.message}") for c in other[:_FINDINGS]]
    findings += [Finding(name, why) for name, why in list(found.left_out.items())[:_FINDINGS]]
    state, reason = State.PASS, _reason(found.tensors)
    if found.left_out:
        state = State.NOT_ENOUGH_EVIDENCE
        reason = f"{len(found.left_out)} tensors cannot be compared with the source's; {reason}"
    if not found.tensors:
        state, reason = State.NOT_ENOUGH_EVIDENCE, "no tensor could be compared"
    return Outcome(NAME, Verdict(state, reason, numbers), tuple(findings), points)


def compare_folder(
    source: Checkpoint, stored: Checkpoint, threads: int | None = None
) -> Comparison:
    """Every tensor of the source beside what the folder holds of it."""
    compared: dict[str, Compared] = {}
    broken: dict[str, str] = {}
    left_out: dict[str, str] = {}
    with ThreadPoolExecutor(threads or cores()) as pool:
        folder = Folder(source, stored, pool)
        for name in source.tensors:
            try:
                compared[name] = folder.compare(name)
            except UnsupportedError as error:
                left_out[name] = str(error)
            except TensorError as error:
                broken[name] = str(error)
        if folder.quantization is not None and any(c.wrong for c in compared.values()):
            explained, experts = explain(folder, compared)
            compared |= explained
            left_out |= dict.fromkeys(experts, _OF_EXPERTS)
    for one in compared.values():
        if one.undecided:
            left_out[one.name] = f"{one.message}; {_NO_MORE_THAN_GPTQ}"
    kept = tuple(one for name, one in compared.items() if name not in left_out)
    return Comparison(kept, broken, left_out)


def not_compared(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """What a report is to name as not checked: weights that stand beside nothing of the source."""
    of_weights = [outcome for outcome in outcomes if outcome.check in (NAME, GGUF)]
    counts = [(one.check, one.verdict.numbers.get("not_compared")) for one in of_weights]
    return tuple(f"{check} of {count} tensors" for check, count in counts if count)


def _numbers(found: Comparison) -> dict[str, Number]:
    matrices = [c for c in found.tensors if c.matrix]
    bounded = [c.elements.out_of_bounds for c in found.tensors if c.elements and not c.rescaled]
    return {
        "matrices": len(matrices),
        "copies": len(found.tensors) - len(matrices),
        "same_bytes": sum(c.same_bytes for c in matrices),
        "rescaled": sum(c.rescaled for c in found.tensors),
        "not_compared": len(found.left_out),
        "values": sum(c.values for c in found.tensors),
        "out_of_bounds": sum(bounded),
        "wrong": len(found.broken) + sum(c.wrong for c in found.tensors),
        "worst_ratio": finite(max((c.ratio for c in matrices), default=0.0)),
    }


def _reason(tensors: Sequence[Compared]) -> str:
    """What was found, where nothing is wrong."""
    within = [c for c in tensors if c.matrix and c.again is None]
    again = [c for c in tensors if c.again is not None]
    copies = [c for c in tensors if not c.matrix and not c.rescaled]
    other = [c for c in again if not c.same_bytes]
    said = []
    if within:
        values = sum(c.values for c in within)
        said.append(f"all {values:,} values in FP8 are within their rounding of the source")
    if again and not other:
        said.append(f"all {len(again)} matrices encode to the same bytes")
    if other:
        worst = max(c.again.ratio for c in other if c.again is not None)
        said.append(
            f"{len(other)} of {len(within) + len(again)} matrices have other bytes than our own"
            f" encoding, with errors like it (at most {worst:.2f} times)"
        )
    if moved := sum(c.rescaled for c in tensors):
        said.append(f"{moved} tensors hold scales of others, which were taken out")
    if copies:
        said.append(f"{len(copies)} tensors are the source's to the bit")
    return "; ".join(said)
