"""The verb `verify`: one reference, any number of artifacts, one report.

The reference answers the suite once, in float32, and is put away; then each artifact in turn is
looked at (structure, tokens, templates, and the weights of an FP8 folder or a GGUF), run by the
engine it is made for, and compared under the gate's thresholds for its type. One model is in memory
at a time. An artifact whose structure is wrong is not run: what it would answer says nothing. One
that its engine cannot load has failed, one that the engine cannot compute as it is meant to be
computed leaves too little evidence, and the others are verified all the same.

An artifact may be the address of an OpenAI-compatible server. Its files are out of reach, so the
report names the checks that were not made; instead, its own parser's tool calls are compared too. A
server that fails on the way leaves too little evidence: that is no fault of the model.

The reference's answers and log-probabilities are kept in `cache`, if one is given: the next run on
the same weights and prompts does not load it.

`open_engine` is a parameter so that a test can put another engine in an artifact's place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.errors import InputError, ServerError, UnsupportedError
from convert.hub import locate
from convert.job import tool_version
from convert.rendering import Tokenizer
from quantize.importance import ImportanceFile, read_importance
from verify.agreement import check_agreement
from verify.artifact import Artifact, Kind, open_artifact
from verify.behaviour import check_behaviour, not_measured
from verify.call_outcomes import confusion
from verify.check import Check, Outcome, State, Verdict, total_state
from verify.differences import Difference, differences
from verify.engines import ChatEngine, Engine, EngineInfo, OnProgress, ServedReply
from verify.evidence import (
    Answer,
    Evidence,
    Reference,
    TeacherForced,
    ask,
    ask_served,
    make_prompts,
)
from verify.gate import read_gate
from verify.gguf_weights import check_gguf_weights
from verify.logits import check_log_probabilities
from verify.reference_cache import ReferenceCache
from verify.reference_run import run_reference
from verify.report.contents import ArtifactReport, ReferenceReport, Report, Scores
from verify.served import NAME as SERVED_CALLS
from verify.served import check_served_calls
from verify.structure import check_structure, expected_gguf_shapes
from verify.suite import read_suite
from verify.summary import gate_report, scores, suite_report
from verify.teacher_forcing import score_artifact
from verify.templates import check_templates
from verify.tokens import check_tokens
from verify.weights import check_weights, is_fp8

DEFAULT_MAX_NEW_TOKENS = 256
CHECKS_BEFORE: tuple[Check[Evidence], ...] = (check_structure, check_tokens, check_templates)
CHECKS_OF_FILES = ("structure", "tokens", "templates")
"""The names of CHECKS_BEFORE, none of which can be made of a served model."""
CHECKS_AFTER: tuple[Check[Evidence], ...] = (check_agreement,)
OpenEngine = Callable[[Artifact], Engine]
OnNamedProgress = Callable[[str, int, int], None]
Served = tuple[ServedReply | None, ...]


def open_engine(artifact: Artifact, *, kv_type: str = "float16") -> Engine:
    """The engine an artifact is made for: llama.cpp for GGUF, transformers for folders, else HTTP.

    `kv_type` is the element type of llama.cpp's KV cache; the others have their own.
    Both compute with OpenMP, whose threads spin while they wait for each other unless told not to
    before they are loaded: on a machine with other work, fifty times slower for a small model.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if artifact.served is not None:
            from verify.engines.openai_server import OpenAIEngine

            return OpenAIEngine(artifact.served)
        if artifact.kind is Kind.GGUF:
            from verify.engines.llama_cpp import LlamaCppEngine

            return LlamaCppEngine(artifact.path, kv_type=kv_type)
        from verify.engines.transformers import TransformersEngine

        return TransformersEngine(artifact.path)
    except ImportError as error:
        raise UnsupportedError(
            f"{error.name} is not installed; verify needs it: pip install 'hermes-quant[verify]'"
        ) from error


def verify(
    reference: str | Path,
    artifacts: Sequence[Path | str],
    *,
    suite: Path | None = None,
    limit: int | None = None,
    gate: Path | None = None,
    imatrix: Path | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    cache: Path | None = None,
    on_progress: OnNamedProgress | None = None,
    open_engine: OpenEngine = open_engine,
) -> Report:
    """Compare every artifact with the reference (a folder or hub id) on a suite of conversations.

    An artifact is a GGUF file, a folder, or the address of a server (`http://host:8000/v1`).
    Without a `suite` (a JSONL file or a folder of them) the reference's own prompts are used,
    without a `gate` the one among them, else the defaults. `imatrix` is the importance matrix that
    the GGUF files were made with.
    Raises InputError for what cannot be begun with: a quantized reference, a path that is no
    artifact, a server that does not answer, a suite that cannot be read or rendered.
    """
    if not artifacts:
        raise InputError("no artifact to verify; name a GGUF file, a folder or a server's address")
    opened = [open_artifact(path) for path in artifacts]
    importance = read_importance(imatrix) if imatrix else None
    with Checkpoint.open(locate(str(reference)).folder) as checkpoint:
        asked = read_gate(gate, checkpoint.path)
        source = open_artifact(checkpoint.path)
        if source.kind is not Kind.CHECKPOINT:
            raise UnsupportedError(f"{reference}: quantized; the reference must be the original")
        if any(artifact.kind is Kind.GGUF for artifact in opened):
            expected_gguf_shapes(checkpoint)  # refuses a reference that is itself incomplete
        chosen = read_suite(suite, checkpoint.path, limit)
        tokenizer = Tokenizer.open(checkpoint.path)
        prompts = make_prompts(checkpoint, tokenizer, chosen.conversations, max_new_tokens)
        base = Reference(checkpoint, tokenizer, chosen.conversations, prompts)
        begin = time.monotonic()
        base = run_reference(
            lambda: open_engine(source),
            base,
            max_new_tokens=max_new_tokens,
            cache=ReferenceCache(cache, checkpoint) if cache else None,
            on_progress=_named(on_progress, source),
        )
        assert base.engine is not None
        seconds = time.monotonic() - begin
        right = scores(base, base.answers)
        reported = ReferenceReport(source.name, base.engine, right, seconds)
        reports = tuple(
            _verify_one(
                Evidence(base, artifact, asked.of(artifact.type)),
                importance,
                open_engine,
                max_new_tokens,
                on_progress,
            )
            for artifact in opened
        )
        tokenizer.close()
    return Report(
        tool_version(),
        suite_report(chosen),
        gate_report(asked, opened),
        max_new_tokens,
        reported,
        reports,
    )


def _verify_one(
    evidence: Evidence,
    importance: ImportanceFile | None,
    open_engine: OpenEngine,
    max_new_tokens: int,
    on_progress: OnNamedProgress | None,
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
            evidence = replace(evidence, answers=found.answers, forced=found.forced)
            answered = _look_at_answers(evidence, found)
            outcomes += [*answered.outcomes, *check_log_probabilities(evidence)]
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
        not_measured=not_measured(outcomes) if answered else (),
        confusion=answered.confusion if answered else {},
        differences=answered.differences if answered else (),
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
    differences: tuple[Difference, ...]


def _look_at_answers(evidence: Evidence, found: _Found) -> _Answered:
    evidence = replace(evidence, answers=found.answers)
    reference = evidence.reference
    outcomes = [check(evidence) for check in CHECKS_AFTER]
    outcomes += check_behaviour(evidence)
    if found.served is not None:
        outcomes.append(_served_outcome(evidence, found.served))
    pairs = list(zip(reference.answers, found.answers, strict=True))
    return _Answered(
        tuple(outcomes),
        found.info,
        scores(reference, found.answers),
        confusion(reference.conversations, pairs),
        tuple(differences(reference.conversations, pairs)),
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


def _not_run(state: State, reason: str) -> Outcome:
    return Outcome("agreement", Verdict(state, reason))


@dataclass(frozen=True, slots=True)
class _Found:
    """What an engine answered; `served` is None unless it is a server, which may have refused."""

    answers: tuple[Answer, ...]
    info: EngineInfo
    served: Served | ServerError | None
    forced: TeacherForced | str | None


def _named(on_progress: OnNamedProgress | None, artifact: Artifact) -> OnProgress | None:
    """Progress with the name of the model that makes it."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(artifact.name, done, total)


def _run(
    open_engine: OpenEngine,
    evidence: Evidence,
    max_new_tokens: int,
    on_progress: OnNamedProgress | None,
) -> _Found:
    """Load, ask everything, put away."""
    report = _named(on_progress, evidence.artifact)
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
        return _Found(answers, engine.info, served, forced)
    finally:
        engine.close()
