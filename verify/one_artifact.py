"""All that is verified of one artifact, in order: its files, its answers, its log-probabilities.

In: `Evidence` without answers, and a way to open an engine. Out: an `ArtifactReport`.

An artifact whose structure is wrong is not run: what it would answer says nothing. One that its
engine cannot load has failed; one that the engine cannot compute as it is meant to be computed, or
whose server fails on the way, leaves too little evidence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from convert.errors import InputError, ServerError, UnsupportedError
from convert.workers import Steps
from quantize.importance import ImportanceFile
from verify.agreement import check_agreement
from verify.artifact import Artifact, Kind
from verify.behaviour import check_behaviour, not_measured
from verify.call_outcomes import confusion
from verify.check import Check, Outcome, State, Verdict, total_state
from verify.differences import Difference, differences
from verify.engines import (
    ChatEngine,
    Engine,
    EngineInfo,
    OnProgress,
    ServedReply,
    StatedScale,
    WatchingEngine,
)
from verify.evidence import Answer, Evidence, TeacherForced, ask, ask_served
from verify.gguf_weights import check_gguf_weights
from verify.logits import check_log_probabilities
from verify.pair_outcomes import count_pairs
from verify.portability import NAME as PORTABILITY
from verify.portability import check_portability
from verify.report.contents import ArtifactReport, Scores
from verify.scales import check_scales
from verify.served import NAME as SERVED_CALLS
from verify.served import check_served_calls
from verify.strata import Stratum, strata
from verify.structure import check_structure
from verify.summary import fit_report, scores
from verify.teacher_forcing import score_artifact
from verify.templates import check_templates
from verify.tokens import check_tokens
from verify.weights import check_weights, is_fp8

CHECKS_BEFORE: tuple[Check[Evidence], ...] = (check_structure, check_tokens, check_templates)
CHECKS_OF_FILES = ("structure", "tokens", "templates")
"""The names of CHECKS_BEFORE, none of which can be made of a served model."""
CHECKS_AFTER: tuple[Check[Evidence], ...] = (check_agreement,)
OpenEngine = Callable[[Artifact], Engine]
Served = tuple[ServedReply | None, ...]


def verify_one(
    evidence: Evidence,
    importance: ImportanceFile | None,
    open_engine: OpenEngine,
    max_new_tokens: int,
    on_progress: Steps | None,
) -> ArtifactReport:
    """All checks on one artifact, and its scores if it could be run."""
    begin = time.monotonic()
    artifact = evidence.artifact
    outcomes = _check_files(evidence, importance)
    answered: _Answered | None = None
    if outcomes and outcomes[0].verdict.state is State.FAIL:
        outcomes.append(_not_run(State.NOT_ENOUGH_EVIDENCE, "not run: its structure is wrong"))
    else:
        try:
            found = _run(open_engine, evidence, max_new_tokens, on_progress)
        except (ServerError, UnsupportedError) as error:
            outcomes.append(_not_run(State.NOT_ENOUGH_EVIDENCE, _without_address(artifact, error)))
        except InputError as error:
            outcomes.append(_not_run(State.FAIL, str(error)))
        else:
            evidence = replace(
                evidence, answers=found.answers, forced=found.forced, scales=found.scales
            )
            answered = _look_at_answers(evidence, found)
            outcomes += [*answered.outcomes, *check_log_probabilities(evidence)]
            outcomes += check_scales(evidence)
    return ArtifactReport(
        name=artifact.name,
        kind=artifact.kind.value,
        type=artifact.type,
        size_bytes=artifact.size_bytes,
        gate_class=evidence.thresholds.name,
        state=total_state(outcome.verdict.state for outcome in outcomes),
        outcomes=tuple(outcomes),
        engine=answered.info if answered else None,
        scores=answered.scores if answered else None,
        seconds=time.monotonic() - begin,
        not_checked=CHECKS_OF_FILES if artifact.served else (),
        not_measured=_not_measured(outcomes) if answered else (),
        confusion=answered.confusion if answered else {},
        pairs=answered.pairs if answered else {},
        differences=answered.differences if answered else (),
        strata=answered.strata if answered else (),
        fit=fit_report(artifact) if outcomes[0].verdict.state is not State.FAIL else None,
    )


def _check_files(evidence: Evidence, importance: ImportanceFile | None) -> list[Outcome]:
    """What can be said without running it; the weights only where the structure is right."""
    if evidence.artifact.served:
        return []
    outcomes = [check(evidence) for check in CHECKS_BEFORE]
    if outcomes[0].verdict.state is not State.FAIL:
        if is_fp8(evidence.artifact):
            outcomes.append(check_weights(evidence))
        if evidence.artifact.kind is Kind.GGUF:
            outcomes.append(check_gguf_weights(evidence, importance))
    return outcomes


@dataclass(frozen=True, slots=True)
class _Answered:
    """What the answers of an artifact come to."""

    outcomes: tuple[Outcome, ...]
    info: EngineInfo
    scores: Scores
    confusion: dict[str, dict[str, int]]
    pairs: dict[str, int]
    differences: tuple[Difference, ...]
    strata: tuple[Stratum, ...]


def _look_at_answers(evidence: Evidence, found: _Found) -> _Answered:
    evidence = replace(evidence, answers=found.answers)
    reference = evidence.reference
    outcomes = [check(evidence) for check in CHECKS_AFTER]
    outcomes += check_behaviour(evidence)
    portability = check_portability(evidence)
    outcomes += [portability] if portability else []
    if found.served is not None:
        outcomes.append(_served_outcome(evidence, found.served))
    pairs = list(zip(reference.answers, found.answers, strict=True))
    return _Answered(
        tuple(outcomes),
        found.info,
        scores(reference, found.answers),
        confusion(reference.conversations, pairs),
        count_pairs(reference.conversations, pairs, evidence.thresholds.tier),
        tuple(differences(reference.conversations, pairs, evidence.thresholds.tier)),
        strata(reference.conversations, pairs, evidence.thresholds.tier),
    )


def _served_outcome(evidence: Evidence, found: Served | ServerError) -> Outcome:
    """What a server's own parser found, if it could answer."""
    if isinstance(found, ServerError):
        reason = _without_address(evidence.artifact, found)
        return Outcome(SERVED_CALLS, Verdict(State.NOT_ENOUGH_EVIDENCE, reason))
    return check_served_calls(replace(evidence, served=found))


def _without_address(artifact: Artifact, error: InputError | str) -> str:
    """What failed, for a report that others read: a server's address is nobody's business."""
    url = artifact.served.url if artifact.served else None
    return str(error).replace(url, "the server's ") if url else str(error)


def _not_measured(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Checks of answers for which the suite has no prompt."""
    portable = any(outcome.check == PORTABILITY for outcome in outcomes)
    return (*not_measured(outcomes), *(() if portable else (PORTABILITY,)))


def _not_run(state: State, reason: str) -> Outcome:
    return Outcome("agreement", Verdict(state, reason))


@dataclass(frozen=True, slots=True)
class _Found:
    """What an engine answered; `served` is None unless it is a server, which may have refused."""

    answers: tuple[Answer, ...]
    info: EngineInfo
    served: Served | ServerError | None
    forced: TeacherForced | str | None
    scales: tuple[StatedScale, ...]


def named(on_progress: Steps | None, artifact: Artifact) -> OnProgress | None:
    """Progress with the name of the model that makes it."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(artifact.name, done, total)


def _run(
    open_engine: OpenEngine,
    evidence: Evidence,
    max_new_tokens: int,
    on_progress: Steps | None,
) -> _Found:
    """Load, ask everything, put away."""
    report = named(on_progress, evidence.artifact)
    reference = evidence.reference
    engine = open_engine(evidence.artifact)
    try:
        answers = ask(engine, reference, max_new_tokens=max_new_tokens, on_progress=report)
        served: Served | ServerError | None = None
        if isinstance(engine, ChatEngine):
            try:
                served = ask_served(
                    engine, reference, max_new_tokens=max_new_tokens, on_progress=report
                )
            except ServerError as error:  # no tool parser, say; what was answered still counts
                served = error
        forced = score_artifact(engine, reference, report) if reference.forced else None
        if isinstance(forced, str):
            forced = _without_address(evidence.artifact, forced)
        scales = engine.stated_scales() if isinstance(engine, WatchingEngine) else ()
        return _Found(answers, engine.info, served, forced, scales)
    finally:
        engine.close()
