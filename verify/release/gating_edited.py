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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.conversation import read_conversations
from convert.errors import ConversationError, InputError, UnsupportedError
from convert.model import Model
from convert.rendering import Tokenizer
from convert.staging import hash_file
from convert.workers import Steps
from quantize.abliteration.edit_folder import EditFolder, read_edit
from verify.abliteration.gate import PairReport, verify_abliteration
from verify.artifact import Artifact, open_artifact
from verify.behaviour import not_measured
from verify.check import Outcome, State, Verdict, total_state
from verify.engines import Engine, EngineInfo
from verify.evidence import Evidence, Reference, make_prompts
from verify.gate import read_gate
from verify.one_artifact import CHECKS_BEFORE, OpenEngine
from verify.release.gating import Gated, engines_of, question_about, without_places, without_times
from verify.release.make import Made
from verify.release.recipe import ReadRecipe
from verify.release.steps import Work
from verify.report.contents import ArtifactReport
from verify.suite import FOLDER, read_suite
from verify.summary import fit_report

UNEDITED = "unedited"
_RUN = "abliteration"


@dataclass(frozen=True, slots=True)
class EditInputs:
    """What edited artifacts are made and judged by: the edits read, and all of it by hash."""

    edit: EditFolder
    controls: tuple[EditFolder, ...]
    entry: Mapping[str, Any]


def read_edit_inputs(read: ReadRecipe, model: Model) -> EditInputs:
    """Edits and prompts as the recipe names them; InputError where one is missing or not fit."""
    stated = read.abliteration
    if not (read.folder / stated.edit).is_dir():
        raise InputError(missing_edit(read))
    edit, *controls = (read_edit(read.folder / path) for path in (stated.edit, *stated.controls))
    for given in (edit, *controls):
        given.edits_of(model)
    entry = {
        "edit": edit.record(),
        "controls": [control.sha256 for control in controls],
        "refused": _prompts(read.folder / stated.refused),
        "harmless": _prompts(read.folder / stated.harmless),
        "limits": asdict(stated.limits.stated()),
    }
    return EditInputs(edit, tuple(controls), entry)


def missing_edit(read: ReadRecipe) -> str:
    """What to say where the recipe's edit is not there."""
    path = read.folder / read.abliteration.edit
    return (
        f"{path}: the recipe's abliteration.edit is not there; make it with `hermes-quant"
        " abliterate` measure, select and apply, look at it, and build again"
    )


def _prompts(path: Path) -> dict[str, Any]:
    count = len(read_conversations(path))
    return {"name": path.name, "sha256": hash_file(path), "used": count}


def gate_edited(
    read: ReadRecipe,
    made: Made,
    twin: Gated,
    controls: Sequence[Made],
    inputs: EditInputs,
    work: Work,
    *,
    checkpoint: Path,
    source_files: Mapping[str, Any],
    asked: Mapping[str, Any],
    open_engine: OpenEngine | None = None,
    on_progress: Steps | None = None,
) -> Gated:
    """Compare one edited artifact with its twin, unless the same question was answered before."""
    name = twin.made.artifact.name
    if not twin.passed:
        reason = f"not compared: {name} did not pass ({twin.reason})"
        verdict = Verdict(twin.found.state, reason, {"artifact": name})
        return _gated(made, twin, [Outcome(UNEDITED, verdict)], None)
    others = [file.sha256 for one in (twin.made, *controls) for file in one.artifact.files]
    entry = dict(inputs.entry)
    digest = question_about(made, source_files, asked=dict(asked), compared=others, edit=entry)
    kept = work.read_check(made.artifact.name, digest)
    if kept is not None:
        return Gated(made, kept, kept=True)
    reason = f"compared with {name}, the same type unedited, which passed its gate"
    outcomes = [Outcome(UNEDITED, Verdict(State.PASS, reason, {"artifact": name}))]
    outcomes += _check_files(read, made, checkpoint)
    info: EngineInfo | None = None
    if total_state(outcome.verdict.state for outcome in outcomes) is State.PASS:
        run = _Compared(read, made, twin.made, controls, checkpoint)
        compared, info = run.outcomes(open_engine or engines_of(read), on_progress)
        outcomes += compared
    gated = _gated(made, twin, outcomes, info)
    report = without_times(gated.report)
    for one in (made, twin.made, *controls):
        report = without_places(report, one.folder)
    work.write_check(made.artifact.name, digest, report)
    return Gated(made, report, kept=False)


def pair_of(gated: Gated) -> PairReport:
    """A gated edited artifact as `abliterate verify` reports one."""
    found = gated.found
    return PairReport(unedited_of(gated), found.name, found.type, found.state, found.outcomes, {})


def unedited_of(gated: Gated) -> str:
    """The name of the artifact that an edited one was compared with."""
    compared = next(o for o in gated.found.outcomes if o.check == UNEDITED)
    return str(compared.verdict.numbers["artifact"])


def _check_files(read: ReadRecipe, made: Made, checkpoint: Path) -> list[Outcome]:
    """The checks of files that every artifact has to pass, against the source."""
    gates = read.recipe.gates
    chosen = read_suite(read.path(gates.suite), checkpoint, gates.limit).conversations
    with Checkpoint.open(checkpoint) as source:
        tokenizer = Tokenizer.open(checkpoint)
        try:
            prompts = make_prompts(source, tokenizer, chosen, gates.max_new_tokens)
            artifact = open_artifact(made.path)
            thresholds = read_gate(read.path(gates.gate), checkpoint).of(artifact.type)
            reference = Reference(source, tokenizer, tuple(chosen), prompts)
            evidence = Evidence(reference, artifact, thresholds)
            return [check(evidence) for check in CHECKS_BEFORE]
        finally:
            tokenizer.close()


@dataclass(frozen=True, slots=True)
class _Compared:
    """One run of the abliteration's gate, on one pair."""

    read: ReadRecipe
    made: Made
    twin: Made
    controls: Sequence[Made]
    checkpoint: Path

    def outcomes(
        self, open_engine: OpenEngine, on_progress: Steps | None
    ) -> tuple[list[Outcome], EngineInfo | None]:
        """What it found, and the engine that ran the edited artifact."""
        stated, gates = self.read.abliteration, self.read.recipe.gates
        engines: dict[str, EngineInfo] = {}

        def noted(artifact: Artifact) -> Engine:
            engine = open_engine(artifact)
            engines[artifact.name] = engine.info
            return engine

        try:
            report = verify_abliteration(
                str(self.checkpoint),
                self.read.folder / stated.edit,
                [(self.twin.path, self.made.path)],
                self.read.folder / stated.refused,
                self.read.folder / stated.harmless,
                suite=self.read.path(gates.suite) or self.checkpoint / FOLDER,
                limit=gates.limit,
                gate=self.read.path(gates.gate),
                max_new_tokens=gates.max_new_tokens,
                controls=[control.path for control in self.controls],
                limits=stated.limits.stated(),
                on_progress=on_progress,
                open_engine=noted,
            )
        except ConversationError:
            raise  # the user's prompts, no fault of the artifact
        except UnsupportedError as error:
            return [Outcome(_RUN, Verdict(State.NOT_ENOUGH_EVIDENCE, str(error)))], None
        except InputError as error:
            return [Outcome(_RUN, Verdict(State.FAIL, str(error)))], None
        (pair,) = report.pairs
        return [*pair.outcomes, *report.controls], engines.get(pair.edited)


def _gated(made: Made, twin: Gated, outcomes: Sequence[Outcome], info: EngineInfo | None) -> Gated:
    """The outcomes as the report of one artifact; of suite and reference it says what the twin's
    report says."""
    artifact = open_artifact(made.path)
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
        fit=fit_report(artifact),
    )
    return Gated(made, replace(twin.report, artifacts=(found,)), kept=False)
