"""All that is verified of one artifact, in order: its files, its answers, its log-probabilities.

In: `Evidence` without answers, and how artifacts are run. Out: an `ArtifactReport`.

An artifact whose structure is wrong is not run: what it would answer says nothing. One that its
engine cannot load has failed; one that the engine cannot compute as it is meant to be computed or
has no memory for, or whose server fails on the way, leaves too little evidence. So does a server
that gives no token ids, but what it makes of the conversations themselves is judged all the same.

Without the reference's weights (a server answers for it) the artifact's own cannot be held against
them; what is not checked for want of files is named in the report.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from convert.errors import ContextError, InputError, ServerError, UnsupportedError
from quantize.importance import ImportanceFile
from verify.agreement import check_agreement
from verify.artifact import Artifact, Kind
from verify.behaviour import check_behaviour, not_measured
from verify.call_outcomes import confusion
from verify.check import Check, Outcome, State, Verdict, total_state
from verify.differences import Difference, differences
from verify.engines import SERVED_DEVICE, EngineInfo
from verify.evidence import Answer, Evidence, TeacherForced
from verify.gguf_weights import check_gguf_weights
from verify.logits import check_log_probabilities
from verify.pair_outcomes import count_pairs
from verify.portability import NAME as PORTABILITY
from verify.portability import check_portability
from verify.reasoning import check_reasoning
from verify.rendering import check_rendering
from verify.report.contents import ArtifactReport, Scores
from verify.run_artifact import Found, Running, run_artifact
from verify.scales import check_scales
from verify.served import NAME as SERVED_CALLS
from verify.served import check_served_calls
from verify.served_replies import as_answers, judged_as_served
from verify.strata import Stratum, strata
from verify.structure import check_structure
from verify.summary import fit_report, scores
from verify.templates import check_templates
from verify.tokens import check_tokens
from verify.weights import NAME as WEIGHTS
from verify.weights import check_weights, not_compared

CHECKS_BEFORE: tuple[Check[Evidence], ...] = (
    check_structure,
    check_tokens,
    check_templates,
    check_rendering,
)
CHECKS_OF_FILES = ("structure", "tokens", "templates", "rendering")
"""The names of CHECKS_BEFORE, none of which can be made of a served model."""
CHECKS_AFTER: tuple[Check[Evidence], ...] = (check_agreement,)
NEED_WEIGHTS = ("structure", "weights", "gguf_weights")
"""Checks that hold an artifact's files against the reference's weights."""
NEED_IDS = (PORTABILITY, "log_probabilities")
"""Checks that go by the tokens of a reply."""
NO_FLOOR = "noise_floor in 16 bits"
"""What cannot be had of a reference that a server answers for."""
_TOO_LITTLE = (ServerError, UnsupportedError, ContextError)


def verify_one(
    evidence: Evidence, importance: ImportanceFile | None, running: Running
) -> ArtifactReport:
    """All checks on one artifact, and its scores if it could be run."""
    begin = time.monotonic()
    artifact = evidence.artifact
    outcomes = _check_files(evidence, importance)
    sound = not any(o.check == "structure" and o.verdict.state is State.FAIL for o in outcomes)
    answered: _Answered | None = None
    if not sound:
        outcomes.append(_not_run(State.NOT_ENOUGH_EVIDENCE, "not run: its structure is wrong"))
    else:
        try:
            found = run_artifact(running, evidence)
        except _TOO_LITTLE as error:
            outcomes.append(_not_run(State.NOT_ENOUGH_EVIDENCE, _without_address(artifact, error)))
        except InputError as error:
            outcomes.append(_not_run(State.FAIL, str(error)))
        else:
            answered = _look_at(evidence, found)
            outcomes += answered.outcomes
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
        not_checked=(
            *_not_checked(evidence),
            *not_compared(outcomes),
            *(answered.not_checked if answered else ()),
        ),
        not_measured=_not_measured(outcomes, answered) if answered else (),
        confusion=answered.confusion if answered else {},
        pairs=answered.pairs if answered else {},
        differences=answered.differences if answered else (),
        strata=answered.strata if answered else (),
        fit=fit_report(artifact) if sound else None,
    )


def _check_files(evidence: Evidence, importance: ImportanceFile | None) -> list[Outcome]:
    """What can be said without running it; the weights only where the structure is right."""
    if evidence.artifact.served:
        return []
    if not evidence.reference.checkpoint.tensors:
        return [check(evidence) for check in CHECKS_BEFORE[1:]]
    outcomes = [check(evidence) for check in CHECKS_BEFORE]
    if outcomes[0].verdict.state is not State.FAIL:
        if evidence.artifact.kind is Kind.GGUF:
            outcomes.append(check_gguf_weights(evidence, importance))
        else:
            outcomes.append(check_weights(evidence))
    return outcomes


def _not_checked(evidence: Evidence) -> tuple[str, ...]:
    """What is out of reach: an artifact's files, or the reference's weights."""
    artifact, reference = evidence.artifact, evidence.reference
    missed: tuple[str, ...] = (*CHECKS_OF_FILES, WEIGHTS) if artifact.served else ()
    if not artifact.served and not reference.checkpoint.tensors:
        other = "weights" if artifact.kind is Kind.GGUF else "gguf_weights"
        missed = tuple(name for name in NEED_WEIGHTS if name != other)
    by_server = reference.engine is not None and reference.engine.device == SERVED_DEVICE
    return (*missed, *([NO_FLOOR] if by_server else []))


@dataclass(frozen=True, slots=True)
class _Answered:
    """What the answers of an artifact come to; `not_checked` is what they cannot tell."""

    outcomes: tuple[Outcome, ...]
    info: EngineInfo
    scores: Scores | None = None
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    strata: tuple[Stratum, ...] = ()
    not_checked: tuple[str, ...] = ()


def _look_at(evidence: Evidence, found: Found) -> _Answered:
    """Everything that is decided by what came back."""
    if isinstance(found.answers, str):
        return _look_at_chat(evidence, found, found.answers)
    evidence = replace(
        evidence, answers=found.answers, forced=_forced(evidence, found), scales=found.scales
    )
    outcomes = [check(evidence) for check in CHECKS_AFTER]
    outcomes += check_behaviour(evidence)
    portability = check_portability(evidence)
    outcomes += [portability] if portability else []
    if found.served is not None:
        outcomes.append(_served_outcome(evidence, found))
    outcomes += _reasoning(evidence)
    outcomes += check_log_probabilities(evidence)
    outcomes += check_scales(evidence)
    answered = _sum_up(evidence, found.info, found.answers, outcomes)
    pairs = list(zip(evidence.reference.answers, found.answers, strict=True))
    shown = differences(evidence.reference.conversations, pairs, evidence.thresholds.tier)
    return replace(answered, differences=tuple(shown))


def _look_at_chat(evidence: Evidence, found: Found, reason: str) -> _Answered:
    """A server that gives no token ids: what it makes of the conversations is all there is."""
    words = f"not compared token for token: {_without_address(evidence.artifact, reason)}"
    outcomes = [_not_run(State.NOT_ENOUGH_EVIDENCE, words), _served_outcome(evidence, found)]
    if isinstance(found.served, str) or found.served is None:
        return _Answered(tuple(outcomes), found.info, not_checked=NEED_IDS)
    answers = as_answers(evidence.reference, found.served)
    outcomes += judged_as_served(replace(evidence, answers=answers))
    outcomes += _reasoning(evidence)
    return replace(_sum_up(evidence, found.info, answers, outcomes), not_checked=NEED_IDS)


def _sum_up(
    evidence: Evidence, info: EngineInfo, answers: tuple[Answer, ...], outcomes: Sequence[Outcome]
) -> _Answered:
    reference = evidence.reference
    pairs = list(zip(reference.answers, answers, strict=True))
    return _Answered(
        tuple(outcomes),
        info,
        scores=scores(reference, answers),
        confusion=confusion(reference.conversations, pairs),
        pairs=count_pairs(reference.conversations, pairs, evidence.thresholds.tier),
        strata=strata(reference.conversations, pairs, evidence.thresholds.tier),
    )


def _forced(evidence: Evidence, found: Found) -> TeacherForced | str | None:
    """What was found along the reference's text, or why not, without the server's address."""
    forced = found.forced
    if isinstance(forced, str):
        return _without_address(evidence.artifact, forced)
    if forced is not None:
        return replace(forced, no_long=_without_address(evidence.artifact, forced.no_long))
    return None


def _reasoning(evidence: Evidence) -> list[Outcome]:
    outcome = check_reasoning(evidence.reference)
    return [outcome] if outcome else []


def _served_outcome(evidence: Evidence, found: Found) -> Outcome:
    """What a server's own parser found, if it could answer."""
    if found.served is None or isinstance(found.served, str):
        reason = _without_address(evidence.artifact, found.served or "it cannot chat")
        return Outcome(SERVED_CALLS, Verdict(State.NOT_ENOUGH_EVIDENCE, reason))
    return check_served_calls(replace(evidence, served=found.served))


def _without_address(artifact: Artifact, error: InputError | str) -> str:
    """What failed, for a report that others read."""
    return artifact.without_address(str(error))


def _not_measured(outcomes: Sequence[Outcome], answered: _Answered) -> tuple[str, ...]:
    """Checks of answers for which the suite has no prompt."""
    made = {*answered.not_checked, *(outcome.check for outcome in outcomes)}
    portable = PORTABILITY in made
    return (*not_measured(outcomes), *(() if portable else (PORTABILITY,)))


def _not_run(state: State, reason: str) -> Outcome:
    return Outcome("agreement", Verdict(state, reason))
