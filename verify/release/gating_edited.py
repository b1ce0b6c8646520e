"""The gate of an edited artifact: beside the unedited one of the same type, not beside the source.

In: an edited artifact and what the gate found out about its unedited twin. Out: a `Gated` like any
other, so that reports, JUnit, manifest and cards cover it. Its checks:

    unedited                     the twin passed its own gate; if not, nothing is compared
    structure, tokens, ...       its files, against the source, as of every artifact
    residue, refusals, drift ... what `abliterate verify` checks, its tool calls among them
    control                      the same type edited along random directions still refuses

What was found is kept under a fingerprint that covers both artifacts, the edit, prompts, limits,
suite and gate; the twin's own state is looked at anew each time. The twin answers again: batches of
other prompts may round differently, and a report must not depend on what was kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import ConversationError, InputError, UnsupportedError
from convert.model import Model
from convert.rendering import Tokenizer
from convert.staging import hash_file
from quantize.abliteration.edit_folder import read_edit
from verify.abliteration.contents import PairReport
from verify.abliteration.gate import read_prompts, verify_abliteration
from verify.artifact import open_artifact
from verify.behaviour import not_measured
from verify.check import Outcome, State, Verdict, total_state
from verify.evidence import Evidence, Reference, make_prompts
from verify.gate import read_gate
from verify.one_artifact import CHECKS_BEFORE
from verify.release.gating import Gated, Verifying
from verify.release.make import Made
from verify.release.recipe import ReadRecipe
from verify.report.contents import ArtifactReport, Report
from verify.suite import FOLDER, read_suite
from verify.summary import fit_report

UNEDITED = "unedited"
_RUN = "abliteration"


def read_edit_inputs(read: ReadRecipe, model: Model) -> dict[str, Any]:
    """Edits and prompts of the recipe by hash; InputError where one is missing or does not fit."""
    stated = read.abliteration
    if not (read.folder / stated.edit).is_dir():
        raise InputError(missing_edit(read))
    edit, *controls = (read_edit(read.folder / path) for path in (stated.edit, *stated.controls))
    for given in (edit, *controls):
        given.edits_of(model)
    return {
        "edit": edit.record(),
        "controls": [control.sha256 for control in controls],
        "refused": _prompts(read.folder / stated.refused, stated.limit),
        "harmless": _prompts(read.folder / stated.harmless, stated.limit),
        "limits": asdict(stated.limits.stated()),
    }


def missing_edit(read: ReadRecipe) -> str:
    """What to say where the recipe's edit is not there."""
    path = read.folder / read.abliteration.edit
    return (
        f"{path}: the recipe's abliteration.edit is not there; make it with `hermes-quant"
        " abliterate` measure, select and apply, look at it, and build again"
    )


def _prompts(path: Path, limit: int | None) -> dict[str, Any]:
    used = len(read_prompts(path, limit))
    return {"name": path.name, "sha256": hash_file(path), "used": used}


def gate_edited(
    shared: Verifying,
    made: Made,
    twin: Gated,
    controls: Sequence[Made],
    inputs: Mapping[str, Any],
) -> Gated:
    """Compare one edited artifact with its twin, unless the same question was answered before."""
    name = twin.made.artifact.name
    if not twin.passed:
        reason = f"not compared: {name} did not pass ({twin.reason})"
        verdict = Verdict(twin.found.state, reason, {"artifact": name})
        return Gated(made, _report(made, twin, [Outcome(UNEDITED, verdict)], None), kept=False)
    others = [file.sha256 for one in (twin.made, *controls) for file in one.artifact.files]
    question = shared.question(made, compared=others, edit=dict(inputs))
    kept = shared.work.read_check(made.artifact.name, question)
    if kept is not None:
        return Gated(made, kept, kept=True)
    reason = f"compared with {name}, the same type unedited, which passed its gate"
    outcomes = [Outcome(UNEDITED, Verdict(State.PASS, reason, {"artifact": name}))]
    outcomes += _check_files(shared, made)
    pair = None
    if total_state(outcome.verdict.state for outcome in outcomes) is State.PASS:
        compared, pair = _compare(shared, made, twin.made, controls)
        outcomes += compared
    return shared.keep(made, question, _report(made, twin, outcomes, pair))


def pair_of(gated: Gated) -> PairReport:
    """A gated edited artifact as `abliterate verify` reports one."""
    return PairReport(unedited_of(gated), gated.found, {}, {})


def unedited_of(gated: Gated) -> str:
    """The name of the artifact that an edited one was compared with."""
    compared = next(o for o in gated.found.outcomes if o.check == UNEDITED)
    return str(compared.verdict.numbers["artifact"])


def _check_files(shared: Verifying, made: Made) -> list[Outcome]:
    """The checks of files that every artifact has to pass, against the source."""
    read, gates, folder = shared.read, shared.read.recipe.gates, shared.checkpoint
    chosen = read_suite(read.path(gates.suite), folder, gates.limit).conversations
    with Checkpoint.open(folder) as source:
        tokenizer = Tokenizer.open(folder)
        try:
            prompts = make_prompts(source, tokenizer, chosen, gates.max_new_tokens)
            artifact = open_artifact(made.path)
            thresholds = read_gate(read.path(gates.gate), folder).of(artifact.type)
            reference = Reference(source, tokenizer, tuple(chosen), prompts)
            evidence = Evidence(reference, artifact, thresholds)
            return [check(evidence) for check in CHECKS_BEFORE]
        finally:
            tokenizer.close()


def _compare(
    shared: Verifying, made: Made, twin: Made, controls: Sequence[Made]
) -> tuple[list[Outcome], PairReport | None]:
    """What the abliteration's own gate finds."""
    read, stated, gates = shared.read, shared.read.abliteration, shared.read.recipe.gates
    try:
        report = verify_abliteration(
            str(shared.checkpoint),
            read.folder / stated.edit,
            [(twin.path, made.path)],
            read.folder / stated.refused,
            read.folder / stated.harmless,
            suite=read.path(gates.suite) or shared.checkpoint / FOLDER,
            limit=gates.limit,
            prompts=stated.limit,
            gate=read.path(gates.gate),
            max_new_tokens=gates.max_new_tokens,
            controls=[control.path for control in controls],
            limits=stated.limits.stated(),
            on_progress=shared.on_progress,
            open_engine=shared.open_engine,
        )
    except ConversationError:
        raise  # the user's prompts, no fault of the artifact
    except UnsupportedError as error:
        return [Outcome(_RUN, Verdict(State.NOT_ENOUGH_EVIDENCE, str(error)))], None
    except InputError as error:
        return [Outcome(_RUN, Verdict(State.FAIL, str(error)))], None
    (pair,) = report.pairs
    outcomes = [outcome for one in report.artifacts for outcome in one.outcomes]
    return outcomes, pair


def _report(
    made: Made, twin: Gated, outcomes: Sequence[Outcome], pair: PairReport | None
) -> Report:
    """The outcomes as a report of one artifact, under the suite and reference of its twin's."""
    artifact = open_artifact(made.path)
    info = pair.artifact.engine if pair else None
    found = ArtifactReport(
        name=artifact.name,
        kind=artifact.kind.value,
        type=artifact.type,
        size_bytes=artifact.size_bytes,
        gate_class=f"{twin.found.gate_class}, against {twin.found.name}",
        state=total_state(outcome.verdict.state for outcome in outcomes),
        outcomes=tuple(outcomes),
        engine=info,
        scores=None,
        seconds=0.0,
        not_measured=not_measured(outcomes) if info else (),
        confusion=pair.artifact.confusion if pair else {},
        pairs=pair.artifact.pairs if pair else {},
        differences=tuple(d for kind in pair.differences.values() for d in kind) if pair else (),
        fit=fit_report(artifact),
    )
    return replace(twin.report, artifacts=(found,))
