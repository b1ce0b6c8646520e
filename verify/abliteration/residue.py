"""Is the edit in the weights, whole? What is stored along r, held against rounding; no model runs.

In: the source, the EDIT, and two artifacts of one type, the unedited one and the edited one. Out:
an Outcome with a point for every edited tensor. `residue_of_tensor.py` measures; here is decided
what is too much. A tensor is not as the edit says if

    its error along r is over LIMIT times the rounding floor: another direction, a wrong axis, NaN
    the edit is there at another strength, by over STRENGTH of what was asked for
    row norms were put back by over half, which in a trained model brings the direction back

The last two are matched to their damage and need no luck: they find half an edit of one tensor, or
rescaled rows, in weights that are pure chance and in four bits, where either is far below the floor
of a single value. Each must also stand out from its own noise SIGMAS times, so that a type too
coarse to tell fails nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, TensorError
from quantize.abliteration.edit_folder import EditFolder
from verify.abliteration.residue_of_tensor import EMBEDDING, Residue, Share, measure_residue
from verify.abliteration.stored import open_tensors
from verify.artifact import Artifact
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite

NAME = "residue"
LIMIT = 2.0
"""Times the floor. Over hundreds of columns the ratio of rounding alone stays within a few percent
of 1; a half edit of a random matrix of 256 rows is at 10."""
STRENGTH = 0.1
"""Quantizers of two bits shrink what they store by several percent, and so strengths over 1."""
ROWS = 0.5
SIGMAS = 4.0
_FINDINGS = 10


def check_residue(
    base: Checkpoint, unedited: Artifact, edited: Artifact, edit: EditFolder
) -> Outcome:
    """Every edited tensor of one artifact: edited along r, as strongly as asked, nothing else."""
    check_fits(base, edit)
    found: list[Residue] = []
    broken: list[Finding] = []
    with open_tensors(unedited, base) as before, open_tensors(edited, base) as after:
        for line in edit.recipe.edits:
            plain = before.values(line.tensor)
            try:
                there = after.values(line.tensor)
            except CheckpointError as error:
                broken.append(Finding(line.tensor, str(error)))
                continue
            r, keep = edit.directions[line.direction], edit.recipe.keep_norms
            found.append(measure_residue(base, line, r, keep, plain, there, after))
    wrong = sorted((r for r in found if _why(r)), key=lambda r: -r.ratio)
    numbers = _numbers(found, len(wrong) + len(broken))
    points = tuple(_point(r) for r in found)
    if wrong or broken:
        count = len(wrong) + len(broken)
        reason = f"{count} of {len(edit.recipe.edits)} tensors are not edited as the edit says"
        findings = [*broken, *(Finding(r.name, _why(r)) for r in wrong)]
        verdict = Verdict(State.FAIL, reason, numbers)
        return Outcome(NAME, verdict, tuple(findings[:_FINDINGS]), points)
    reason = (
        f"{len(found)} tensors: at most {numbers['worst_left']:.2g} of the direction is off,"
        f" {numbers['worst_ratio']:.2f} times the rounding floor; strengths are as asked, within"
        f" {100 * float(numbers['worst_strength'] or 0):.2g} %"
    )
    return Outcome(NAME, Verdict(State.PASS, reason, numbers), (), points)


def _why(r: Residue) -> str:
    """What is wrong with a tensor; empty if nothing is."""
    # each damage shows a little in the number that is matched to the other
    if _shows(r.rescaled, ROWS) and r.rescaled.value > 2 * abs(r.undone.value):
        return (
            f"the norms of its rows were put back, by {100 * r.rescaled.value:.0f} %"
            f" (\u00b1 {100 * r.rescaled.noise:.2g}): that is not the edit, and undoes part of it"
        )
    if _shows(r.undone, STRENGTH):
        asked, there = r.strength, r.strength * (1 - r.undone.value)
        noise = r.strength * r.undone.noise
        return f"edited at strength {there:.2f} (\u00b1 {noise:.2g}); the edit says {asked:g}"
    if not r.ratio <= LIMIT:  # so that NaN, which is over every limit, does not pass
        return (
            f"{100 * r.left:.3g} % of the direction is not as edited, {r.ratio:.1f} times the"
            f" rounding floor (limit {LIMIT:g})"
        )
    return ""


def _shows(share: Share, least: float) -> bool:
    return abs(share.value) > max(least, SIGMAS * share.noise)


def _numbers(found: Sequence[Residue], wrong: int) -> dict[str, Number]:
    def worst(values: Sequence[float]) -> float | None:
        return None if any(v != v for v in values) else finite(max(values, default=None))

    return {
        "tensors": len(found),
        "wrong": wrong,
        "worst_left": worst([r.left for r in found]),
        "worst_ratio": worst([r.ratio for r in found]),
        "mean_floor": finite(sum(r.floor for r in found) / len(found)) if found else None,
        "worst_strength": worst([abs(r.undone.value) for r in found]),
    }


def _point(r: Residue) -> Point:
    values = {
        "ratio": r.ratio,
        "left": r.left,
        "floor": r.floor,
        "removed": r.removed,
        "strength": r.strength * (1 - r.undone.value),
        "asked": r.strength,
        "rows_put_back": r.rescaled.value,
        "rows_noise": r.rescaled.noise,
    }
    return Point(r.name, {key: finite(value) for key, value in values.items()})


def check_fits(base: Checkpoint, edit: EditFolder) -> None:
    """TensorError for an edit of another model."""
    for line in edit.recipe.edits:
        info = base.tensors.get(line.tensor)
        if info is None:
            raise TensorError(f"{line.tensor}: the edit names it and {base.path} has it not")
        size = edit.directions[line.direction].size
        along = info.columns if line.tensor == EMBEDDING else info.rows
        if size != along:
            raise TensorError(
                f"{line.tensor}: direction {line.direction!r} has {size} numbers, expected"
                f" {along}; this edit is of another model"
            )
