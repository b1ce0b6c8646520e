"""Is the edit in the weights, whole and nowhere else? Two checks on files; no model is run.

    residue     in every edited tensor, what is stored along r is (1 - s) r^T W and nothing but the
                rounding of the type. E = stored - (W - s r a^T) is compared with F, the error of
                storing the edited matrix in that type ourselves. Rounding errors of different rows
                know nothing of each other, so |r^T E| should be about the *floor*

                    floor^2 = sum over i, j of (r_i F_ij)^2

                An edit that is weaker, or undone by rescaling rows, differs along r itself: its E
                is in step over all rows, and |r^T E| a multiple of the floor.
    untouched   every tensor that the edit does not name has the same bytes as in the unedited
                artifact of the same type; `layers.1` is not `layers.10`.

Numbers are shares of |r^T W|. An edit that keeps norms is compared with its own closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import TensorError
from convert.tensor import to_float32
from quantize.abliteration.edit_folder import EditFolder
from verify.abliteration.stored import StoredTensors, open_tensors
from verify.artifact import Artifact
from verify.check import Finding, Number, Outcome, State, Verdict

RESIDUE, UNTOUCHED = "residue", "untouched"
LIMIT = 2.0
"""Times the floor. Over hundreds of columns the ratio of rounding alone stays within a few percent
of 1; a half edit of a random matrix of 256 rows is at 10."""
_TINY = 2e-6
"""Share of |r^T W| that float32 arithmetic leaves."""
_FINDINGS = 10
_EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Residue:
    """One edited tensor: what is off along r, its floor, and r's share of W before."""

    name: str
    left: float
    floor: float
    removed: float

    @property
    def ratio(self) -> float:
        """Left over floor."""
        return self.left / max(self.floor, _TINY)


def check_residue(base: Checkpoint, artifact: Artifact, edit: EditFolder) -> Outcome:
    """Every edited tensor of one artifact against its rounding floor."""
    with open_tensors(artifact, base) as stored:
        found = measure_residues(base, stored, edit)
    if not found:
        reason = "the edit names no projection; an embedding's edit is not looked at here"
        return Outcome(RESIDUE, Verdict(State.NOT_ENOUGH_EVIDENCE, reason))
    # NaN is over every limit: a stored NaN must not pass
    wrong = sorted((r for r in found if not r.ratio <= LIMIT), key=lambda r: -r.ratio)
    numbers: dict[str, Number] = {
        "tensors": len(found),
        "wrong": len(wrong),
        "worst_left": _worst([r.left for r in found]),
        "worst_ratio": _worst([r.ratio for r in found]),
        "mean_floor": _finite(float(np.mean([r.floor for r in found]))),
    }
    if wrong:
        reason = f"{len(wrong)} of {len(found)} tensors are not edited as the edit says"
        return Outcome(RESIDUE, Verdict(State.FAIL, reason, numbers), _findings(wrong))
    reason = (
        f"{len(found)} tensors: at most {numbers['worst_left']:.2g} of the direction is off,"
        f" {numbers['worst_ratio']:.2f} times the rounding floor"
    )
    return Outcome(RESIDUE, Verdict(State.PASS, reason, numbers))


def _worst(values: list[float]) -> float | None:
    return _finite(float(np.max(values)))


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None


def _findings(wrong: list[Residue]) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            r.name,
            f"{100 * r.left:.3g} % of the direction is not as edited, {r.ratio:.1f} times the"
            f" rounding floor (limit {LIMIT:g})",
        )
        for r in wrong[:_FINDINGS]
    )


def measure_residues(base: Checkpoint, stored: StoredTensors, edit: EditFolder) -> list[Residue]:
    """All edited projections; an embedding's edit is not measured."""
    check_fits(base, edit)
    keep = edit.recipe.keep_norms
    found = []
    for line in edit.recipe.edits:
        info = base.tensors[line.tensor]
        r = edit.directions[line.direction].astype(np.float64)
        if line.tensor == _EMBEDDING:
            continue
        raw = base.read_rows(info, 0, info.rows).raw
        w = to_float32(raw, info.dtype).astype(np.float64)
        along = r @ w
        meant = w - line.strength * np.outer(r, along)
        if keep:
            norms = np.linalg.norm(meant, axis=0)
            meant *= np.divide(
                np.linalg.norm(w, axis=0), norms, out=np.ones_like(norms), where=norms > 0
            )
        error = stored.values(line.tensor).astype(np.float64) - meant
        own = stored.rounded(line.tensor, meant.astype(np.float32)).astype(np.float64) - meant
        scale = float(np.linalg.norm(along)) or 1.0
        found.append(
            Residue(
                line.tensor,
                float(np.linalg.norm(r @ error)) / scale,
                float(np.sqrt((np.square(r)[:, None] * np.square(own)).sum())) / scale,
                scale / (float(np.linalg.norm(w)) or 1.0),
            )
        )
    return found


def check_fits(base: Checkpoint, edit: EditFolder) -> None:
    """TensorError for an edit of another model."""
    for line in edit.recipe.edits:
        info = base.tensors.get(line.tensor)
        if info is None:
            raise TensorError(f"{line.tensor}: the edit names it and {base.path} has it not")
        size = edit.directions[line.direction].size
        along = info.columns if line.tensor == _EMBEDDING else info.rows
        if size != along:
            raise TensorError(
                f"{line.tensor}: direction {line.direction!r} has {size} numbers, expected"
                f" {along}; this edit is of another model"
            )


def check_untouched(
    base: Checkpoint, unedited: Artifact, edited: Artifact, edit: EditFolder
) -> Outcome:
    """Every tensor that is not edited has the same bytes in both."""
    named = {line.tensor for line in edit.recipe.edits}
    with open_tensors(unedited, base) as ours, open_tensors(edited, base) as theirs:
        names, others = ours.names(), set(theirs.names())
        lost = [name for name in names if name not in others]
        kept = [name for name in names if name not in named and name in others]
        changed = [name for name in kept if ours.sha256(name) != theirs.sha256(name)]
    numbers: dict[str, Number] = {
        "tensors": len(kept),
        "changed": len(changed),
        "missing": len(lost),
    }
    if not kept and not lost:
        reason = "no tensor outside the edit could be compared"
        return Outcome(UNTOUCHED, Verdict(State.NOT_ENOUGH_EVIDENCE, reason, numbers))
    if changed or lost:
        findings = [Finding(n, "changed, and the edit does not name it") for n in changed]
        findings += [Finding(n, "missing") for n in lost]
        reason = f"{len(changed)} tensors changed that the edit does not name, {len(lost)} missing"
        return Outcome(UNTOUCHED, Verdict(State.FAIL, reason, numbers), tuple(findings[:_FINDINGS]))
    reason = f"the {len(kept)} tensors that the edit does not name have the same bytes"
    return Outcome(UNTOUCHED, Verdict(State.PASS, reason, numbers))
