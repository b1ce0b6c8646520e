"""The verb `verify`: one reference, any number of artifacts, one report.

The reference answers the suite once, in float32, and is put away; then each artifact in turn is
looked at (structure, tokens, templates, and the weights of an FP8 folder), run by the engine it is
made for, and compared. One model is in memory at a time. An artifact whose structure is wrong is
not run: what it would answer says nothing. One that its engine cannot load has failed, one that the
engine cannot compute as it is meant to be computed leaves too little evidence, and the others are
verified all the same.

`open_engine` is a parameter so that a test, or a caller with a server, can put another engine in an
artifact's place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.errors import InputError, UnsupportedError
from convert.hub import locate
from convert.job import tool_version
from convert.rendering import Tokenizer
from verify.agreement import check_agreement
from verify.artifact import Artifact, Kind, open_artifact
from verify.check import Check, Outcome, State, Verdict, total_state
from verify.engines import Engine, EngineInfo, OnProgress
from verify.evidence import Answer, Evidence, Reference, ask, make_prompts
from verify.report import ArtifactReport, ReferenceReport, Report, Scores, SuiteReport
from verify.scoring import score
from verify.statistics import count
from verify.structure import check_structure, expected_gguf_shapes
from verify.suite import Suite, read_suite
from verify.templates import check_templates
from verify.tokens import check_tokens
from verify.weights import check_weights, is_fp8

DEFAULT_MAX_NEW_TOKENS = 256
CHECKS_BEFORE: tuple[Check[Evidence], ...] = (check_structure, check_tokens, check_templates)
CHECKS_AFTER: tuple[Check[Evidence], ...] = (check_agreement,)
OpenEngine = Callable[[Artifact], Engine]
OnNamedProgress = Callable[[str, int, int], None]


def open_engine(artifact: Artifact) -> Engine:
    """The engine an artifact is made for: llama.cpp for GGUF, transformers for folders.

    Both compute with OpenMP, whose threads spin while they wait for each other unless told not to
    before they are loaded: on a machine with other work, fifty times slower for a small model.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if artifact.kind is Kind.GGUF:
            from verify.engines.llama_cpp import LlamaCppEngine

            return LlamaCppEngine(artifact.path)
        from verify.engines.transformers import TransformersEngine

        return TransformersEngine(artifact.path)
    except ImportError as error:
        raise UnsupportedError(
            f"{error.name} is not installed; verify needs it: pip install 'hermes-quant[verify]'"
        ) from error


def verify(
    reference: str | Path,
    artifacts: Sequence[Path],
    *,
    suite: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
    on_progress: OnNamedProgress | None = None,
    open_engine: OpenEngine = open_engine,
) -> Report:
    """Compare every artifact with the reference (a folder or hub id) on a suite of conversations.

    Without a `suite` (a JSONL file or a folder of them) the reference's own prompts are used.
    Raises InputError for what cannot be begun with: a quantized reference, a path that is no
    artifact, a suite that cannot be read or rendered.
    """
    if not artifacts:
        raise InputError("no artifact to verify; name at least one GGUF file or folder")
    opened = [open_artifact(path) for path in artifacts]
    with Checkpoint.open(locate(str(reference)).folder) as checkpoint:
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
        answers, info = _run(open_engine, source, base, max_new_tokens, on_progress)
        base = replace(base, answers=answers, engine=info)
        seconds = time.monotonic() - begin
        found = ReferenceReport(source.name, info, _scores(base, answers), seconds)
        reports = tuple(
            _verify_one(base, artifact, open_engine, max_new_tokens, on_progress)
            for artifact in opened
        )
        tokenizer.close()
    return Report(tool_version(), _suite_report(chosen), max_new_tokens, found, reports)


def _verify_one(
    reference: Reference,
    artifact: Artifact,
    open_engine: OpenEngine,
    max_new_tokens: int,
    on_progress: OnNamedProgress | None,
) -> ArtifactReport:
    """All checks on one artifact, and its scores if it could be run."""
    begin = time.monotonic()
    evidence = Evidence(reference, artifact)
    outcomes = [check(evidence) for check in CHECKS_BEFORE]
    info: EngineInfo | None = None
    scores: Scores | None = None
    if outcomes[0].verdict.state is not State.FAIL and is_fp8(artifact):
        outcomes.append(check_weights(evidence))
    if outcomes[0].verdict.state is State.FAIL:
        outcomes.append(_not_run(State.NOT_ENOUGH_EVIDENCE, "not run: its structure is wrong"))
    else:
        try:
            answers, info = _run(open_engine, artifact, reference, max_new_tokens, on_progress)
        except UnsupportedError as error:
            outcomes.append(_not_run(State.NOT_ENOUGH_EVIDENCE, str(error)))
        except InputError as error:
            outcomes.append(_not_run(State.FAIL, str(error)))
        else:
            outcomes += [check(replace(evidence, answers=answers)) for check in CHECKS_AFTER]
            scores = _scores(reference, answers)
    return ArtifactReport(
        name=artifact.name,
        kind=artifact.kind.value,
        type=artifact.type,
        size_bytes=artifact.size_bytes,
        state=total_state(outcome.verdict.state for outcome in outcomes),
        outcomes=tuple(outcomes),
        engine=info,
        scores=scores,
        seconds=time.monotonic() - begin,
    )


def _not_run(state: State, reason: str) -> Outcome:
    return Outcome("agreement", Verdict(state, reason))


def _run(
    open_engine: OpenEngine,
    artifact: Artifact,
    reference: Reference,
    max_new_tokens: int,
    on_progress: OnNamedProgress | None,
) -> tuple[tuple[Answer, ...], EngineInfo]:
    """Load, ask everything, put away."""
    report: OnProgress | None = None
    if on_progress is not None:
        name = artifact.name
        named = on_progress

        def report(done: int, total: int) -> None:
            named(name, done, total)

    engine = open_engine(artifact)
    try:
        answers = ask(engine, reference, max_new_tokens=max_new_tokens, on_progress=report)
        return answers, engine.info
    finally:
        engine.close()


def _scores(reference: Reference, answers: tuple[Answer, ...]) -> Scores:
    flags: dict[str, list[bool]] = {}
    for conversation, answer in zip(reference.conversations, answers, strict=True):
        if conversation.expected is not None:
            for kind, right in score(conversation.expected, answer).items():
                flags.setdefault(kind, []).append(right)
    return Scores(
        kinds={kind: count(values) for kind, values in flags.items()},
        malformed=count([bool(answer.reply.malformed) for answer in answers]),
        cut_off=count([not answer.finished for answer in answers]),
    )


def _suite_report(suite: Suite) -> SuiteReport:
    return SuiteReport(
        name=suite.name,
        sha256=suite.sha256,
        used=len(suite.conversations),
        available=suite.available,
        with_tools=sum(bool(conversation.tools) for conversation in suite.conversations),
        tags=suite.tags,
    )
