"""Running the reference: its answers, and what it thinks of them, from the cache if they are there.

In: a `Reference` without answers, a way to open its engine, perhaps a cache. Out: the `Reference`
with answers, the engine's own statement, and log-probabilities (none if its engine gives none).

With a cache, everything is kept as it is computed (`engines/kept.py`): a run that was stopped goes
on from there, and where all is kept no weight is loaded. Later turns are asked in rounds, all
second ones, then all third ones.

The engine may be a server; then nothing is kept. Its failing ends the run while it answers, since
without answers there is nothing to compare with; while it scores it costs the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from convert.errors import UnsupportedError
from verify.answer_cache import AnswerCache
from verify.engines import LOG_PROBABILITIES, SERVED_DEVICE, Engine, OnProgress, ScoringEngine
from verify.engines.kept import KeptEngine
from verify.evidence import Reference, ask, make_prompts
from verify.later_turns import later_turns
from verify.teacher_forcing import NOT_HAD, choose_conversations, score_reference

Open = Callable[[], Engine]
UNROUNDED = ("none", "as served")
"""KV caches that a reference may have, beside one in what it is computed in."""


def run_reference(
    open_engine: Open,
    reference: Reference,
    *,
    max_new_tokens: int,
    cache: AnswerCache | None = None,
    batch: int | None = None,
    on_progress: OnProgress | None = None,
) -> Reference:
    """The reference with everything that is computed of it."""

    def opened() -> Engine:
        engine = open_engine()
        info = engine.info
        if info.kv_type not in (info.dtype, *UNROUNDED):
            engine.close()
            raise UnsupportedError(
                f"the reference would keep keys and values in {info.kv_type}, expected"
                f" {info.dtype}; give verify an `open_reference` without options"
            )
        return engine

    engine = KeptEngine(opened, cache, batch=batch) if cache else opened()
    try:
        answers = ask(engine, reference, max_new_tokens=max_new_tokens, on_progress=on_progress)
        reference = replace(reference, answers=answers, engine=engine.info)
        reference = _answer_later(engine, reference, max_new_tokens, on_progress)
        return _force(engine, reference, max_new_tokens, on_progress)
    finally:
        engine.close()


def _answer_later(
    engine: Engine, reference: Reference, max_new_tokens: int, on_progress: OnProgress | None
) -> Reference:
    """The same with the later turns of its conversations, each after its own earlier ones."""
    last = reference
    while True:
        found = later_turns(last.conversations, last.answers)
        reference = replace(reference, not_reached=(*reference.not_reached, *found.not_reached))
        if not found.conversations:
            return reference
        prompts = make_prompts(
            reference.checkpoint, reference.tokenizer, found.conversations, max_new_tokens
        )
        last = replace(last, conversations=found.conversations, prompts=prompts, answers=())
        answers = ask(engine, last, max_new_tokens=max_new_tokens, on_progress=on_progress)
        last = replace(last, answers=answers)
        reference = replace(
            reference,
            conversations=(*reference.conversations, *last.conversations),
            prompts=(*reference.prompts, *last.prompts),
            answers=(*reference.answers, *last.answers),
        )


def _force(
    engine: Engine, reference: Reference, max_new_tokens: int, on_progress: OnProgress | None
) -> Reference:
    """The log-probabilities along the answers, and some answers once more."""
    if not choose_conversations(reference):
        return reference
    if LOG_PROBABILITIES not in engine.info.capabilities:
        if engine.info.device != SERVED_DEVICE:
            return reference
        reason = f"{engine.info.name} gives no log-probabilities of a text it is given"
        return replace(reference, unscored=reason)
    assert isinstance(engine, ScoringEngine)
    try:
        forced = score_reference(engine, reference, max_new_tokens, on_progress)
    except NOT_HAD as error:
        return replace(reference, unscored=str(error))
    return replace(reference, forced=forced)
