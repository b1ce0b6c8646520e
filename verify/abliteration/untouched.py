"""Is the edit nowhere else? Everything that it does not name has the same bytes as unedited.

In: the unedited artifact and the edited one, of one type. Out: an Outcome. What is compared goes by
the artifacts' own names, so that nothing is left out that has no name in the source (the rope
factors of a GGUF, stacked experts), and by whole names: `layers.1` is not `layers.10`. A tensor
that only one of the two has is named, edited or not.

Scales of activations and of the KV cache are results of a calibration, not weights: only that they
are there is compared.
"""

from __future__ import annotations

from convert.checkpoint import Checkpoint
from quantize.abliteration.edit_folder import EditFolder
from verify.abliteration.stored import open_tensors
from verify.artifact import Artifact
from verify.check import Finding, Number, Outcome, State, Verdict

NAME = "untouched"
_FINDINGS = 10
_CALIBRATED = (".input_scale", ".k_scale", ".v_scale")


def check_untouched(
    base: Checkpoint, unedited: Artifact, edited: Artifact, edit: EditFolder
) -> Outcome:
    """Every tensor that is not edited has the same bytes in both, and none came or went."""
    named = [line.tensor for line in edit.recipe.edits]
    with open_tensors(unedited, base) as ours, open_tensors(edited, base) as theirs:
        meant = {part for name in named for part in ours.parts_of(name)}
        names, others = set(ours.held()), set(theirs.held())
        lost, added = sorted(names - others), sorted(others - names)
        kept = [
            name
            for name in ours.held()
            if name in others and name not in meant and not name.endswith(_CALIBRATED)
        ]
        changed = [name for name in kept if ours.sha256(name) != theirs.sha256(name)]
    numbers: dict[str, Number] = {
        "tensors": len(kept),
        "changed": len(changed),
        "missing": len(lost),
        "added": len(added),
    }
    if changed or lost or added:
        findings = [Finding(n, "missing") for n in lost]
        findings += [Finding(n, "in the edited artifact only") for n in added]
        findings += [Finding(n, "changed, and the edit does not name it") for n in changed]
        reason = (
            f"{len(changed)} tensors changed that the edit does not name, {len(lost)} are missing,"
            f" {len(added)} were added"
        )
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), tuple(findings[:_FINDINGS]))
    if not kept:
        reason = "no tensor outside the edit could be compared"
        return Outcome(NAME, Verdict(State.NOT_ENOUGH_EVIDENCE, reason, numbers))
    reason = f"the {len(kept)} tensors that the edit does not name have the same bytes"
    return Outcome(NAME, Verdict(State.PASS, reason, numbers))
