"""One artifact is run: everything it is asked, and what came back.

In: `Evidence` without answers, and how artifacts are run. Out: `Found`.

With a folder to keep answers in, they are kept as they come (`engines/kept.py`), all but those of a
server, whose weights nobody can name. A server that gives no token ids cannot be compared token for
token; it is given whole conversations instead, those without tools too, and `answers` says why
there are none. Its chat interface may fail as well, or have no tool parser: that costs what it
would have said, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError, ServerError, UnsupportedError
from convert.workers import Steps
from verify.answer_cache import AnswerCache
from verify.artifact import Artifact
from verify.engines import (
    ChatEngine,
    Engine,
    EngineInfo,
    OnProgress,
    ServedReply,
    StatedScale,
    WatchingEngine,
)
from verify.engines.kept import KeptEngine
from verify.evidence import Answer, Evidence, Reference, TeacherForced, ask, ask_served
from verify.teacher_forcing import score_artifact

OpenEngine = Callable[[Artifact], Engine]
Served = tuple[ServedReply | None, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """How artifacts are run, and where their answers are kept; `batch` is None for each its own."""

    open_engine: OpenEngine
    max_new_tokens: int
    keep: Path | None = None
    batch: int | None = None
    on_progress: Steps | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What an engine answered. A text in place of answers, of served replies or of
    log-probabilities says why there are none; `served` is None unless it is a server.
    """

    info: EngineInfo
    answers: tuple[Answer, ...] | str
    served: Served | str | None
    forced: TeacherForced | str | None
    scales: tuple[StatedScale, ...]


def run_artifact(running: Running, evidence: Evidence) -> Found:
    """Load, ask everything, put away."""
    artifact, reference = evidence.artifact, evidence.reference
    report = named(running.on_progress, artifact)
    engine = _open(running, artifact)
    tokens = running.max_new_tokens
    try:
        answers = _answers(engine, reference, tokens, report)
        served = _served(engine, reference, tokens, report, every=isinstance(answers, str))
        if isinstance(answers, str):
            return Found(engine.info, answers, served, answers, ())
        forced: TeacherForced | str | None = None
        if reference.unscored:
            forced = f"not had of the reference: {reference.unscored}"
        elif reference.forced is not None:
            forced = score_artifact(engine, reference, report)
        scales = engine.stated_scales() if isinstance(engine, WatchingEngine) else ()
        return Found(engine.info, answers, served, forced, scales)
    finally:
        engine.close()


def _open(running: Running, artifact: Artifact) -> Engine:
    engine = running.open_engine(artifact)
    if running.keep is None or artifact.served:
        return engine
    try:
        cache = AnswerCache.of_artifact(running.keep, artifact, engine.info)
    except InputError:
        engine.close()
        raise
    return KeptEngine.around(engine, cache, batch=running.batch)


def _answers(
    engine: Engine, reference: Reference, tokens: int, report: OnProgress | None
) -> tuple[Answer, ...] | str:
    """The answers on token ids, or why a server that can chat gives none."""
    try:
        return ask(engine, reference, max_new_tokens=tokens, on_progress=report)
    except UnsupportedError as error:
        if not isinstance(engine, ChatEngine):
            raise
        return str(error)


def _served(
    engine: Engine, reference: Reference, tokens: int, report: OnProgress | None, *, every: bool
) -> Served | str | None:
    """What a server makes of the conversations themselves, with tools or `every`."""
    if not isinstance(engine, ChatEngine):
        return None
    try:
        return ask_served(engine, reference, max_new_tokens=tokens, every=every, on_progress=report)
    except ServerError as error:  # no tool parser, say; what was answered still counts
        return str(error)


def named(on_progress: Steps | None, artifact: Artifact) -> OnProgress | None:
    """Progress with the name of the model that makes it."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(artifact.name, done, total)
