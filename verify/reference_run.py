"""Running the reference: its answers, and what it thinks of them, from the cache if they are there.

In: a `Reference` without answers, a way to open its engine, perhaps a cache. Out: the `Reference`
with answers, the engine's own statement, and log-probabilities (none if its engine gives none).

The engine is opened only for what the cache lacks: with everything kept, no weight is loaded. The
answers are kept before the log-probabilities are begun, so a run that is interrupted between the
two goes on from there. Later turns are asked in rounds, all second ones, then all third ones; each
round is an entry of the cache by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from convert.errors import UnsupportedError
from convert.rendering import stop_ids
from verify.engines import LOG_PROBABILITIES, Engine, EngineInfo, OnProgress, ScoringEngine
from verify.engines.log_probabilities import Scored
from verify.evidence import Reference, TeacherForced, make_prompts, read_answers
from verify.later_turns import later_turns
from verify.reference_cache import Arrays, ReferenceCache
from verify.teacher_forcing import TOP, long_passage, make_passage, score_reference, watched_ids
from verify.teacher_forcing import choose_conversations as choose

Open = Callable[[], Engine]
UNROUNDED = ("float32", "none")
"""KV caches that a reference may have: the cache's key does not hold it."""


def run_reference(
    open_engine: Open,
    reference: Reference,
    *,
    max_new_tokens: int,
    cache: ReferenceCache | None = None,
    on_progress: OnProgress | None = None,
) -> Reference:
    """The reference with everything that is computed of it."""
    run = _Run(open_engine, cache)
    try:
        reference = run.answer(reference, max_new_tokens, on_progress)
        reference = run.answer_later(reference, max_new_tokens, on_progress)
        return run.force(reference, max_new_tokens, on_progress)
    finally:
        run.close()


class _Run:
    """An engine that is opened when it is first needed, and the cache before it."""

    def __init__(self, open_engine: Open, cache: ReferenceCache | None) -> None:
        self._open, self._cache = open_engine, cache
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            self._engine = self._open()
            kept_in = self._engine.info.kv_type
            if kept_in not in UNROUNDED:
                raise UnsupportedError(
                    f"the reference would keep keys and values in {kept_in}, expected"
                    f" {UNROUNDED[0]}; give verify an `open_reference` without options"
                )
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def answer(
        self, reference: Reference, max_new_tokens: int, on_progress: OnProgress | None
    ) -> Reference:
        """The answers, and how they were computed."""
        stops = stop_ids(reference.checkpoint, reference.tokenizer)
        asked = {
            "prompts": [list(prompt) for prompt in reference.prompts],
            "max_new_tokens": max_new_tokens,
            "stop_ids": sorted(stops),
        }
        kept = self._cache.read("answers", asked) if self._cache else None
        if kept is None:
            replies = self.engine.generate(
                reference.prompts,
                max_new_tokens=max_new_tokens,
                stop_ids=stops,
                on_progress=on_progress,
            )
            kept = {"info": _encode_info(self.engine.info), **_pack(replies)}
            if self._cache:
                self._cache.write("answers", asked, kept)
        answers = read_answers(reference, _unpack(kept))
        return replace(reference, answers=answers, engine=_decode_info(kept["info"]))

    def answer_later(
        self, reference: Reference, max_new_tokens: int, on_progress: OnProgress | None
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
            asked = replace(last, conversations=found.conversations, prompts=prompts, answers=())
            last = self.answer(asked, max_new_tokens, on_progress)
            reference = replace(
                reference,
                conversations=(*reference.conversations, *last.conversations),
                prompts=(*reference.prompts, *last.prompts),
                answers=(*reference.answers, *last.answers),
            )

    def force(
        self, reference: Reference, max_new_tokens: int, on_progress: OnProgress | None
    ) -> Reference:
        """The log-probabilities along the answers, and some answers once more."""
        assert reference.engine is not None
        chosen = choose(reference)
        if LOG_PROBABILITIES not in reference.engine.capabilities or not chosen:
            return reference
        passages = [make_passage(reference, i, chosen) for i in chosen]
        passages.append(long_passage(reference))
        asked = {
            "passages": [[p.ids, p.start] for p in passages],
            "top": TOP,
            "always": watched_ids(reference),
            "max_new_tokens": max_new_tokens,
            "stop_ids": sorted(stop_ids(reference.checkpoint, reference.tokenizer)),
        }
        kept = self._cache.read("scores", asked) if self._cache else None
        if kept is not None:
            return replace(reference, forced=_decode_forced(kept, chosen))
        assert isinstance(self.engine, ScoringEngine)
        forced = score_reference(self.engine, reference, max_new_tokens, on_progress)
        if self._cache:
            self._cache.write("scores", asked, _encode_forced(forced))
        return replace(reference, forced=forced)


def _encode_info(info: EngineInfo) -> Any:
    text = json.dumps({**asdict(info), "capabilities": sorted(info.capabilities)})
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _decode_info(stored: Any) -> EngineInfo:
    known: Mapping[str, Any] = json.loads(stored.tobytes())
    return EngineInfo(**{**known, "capabilities": frozenset(known["capabilities"])})


def _pack(rows: Sequence[Sequence[int]]) -> Arrays:
    """Lists of ids as one array and the lengths."""
    flat = [token for row in rows for token in row]
    return {"ids": np.array(flat, np.int64), "lengths": np.array([len(r) for r in rows], np.int64)}


def _unpack(stored: Arrays) -> list[list[int]]:
    ends = np.cumsum(stored["lengths"]).tolist()
    ids = stored["ids"].tolist()
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _encode_forced(forced: TeacherForced) -> Arrays:
    """Every field of every Scored, one after the other, the rows each has, which came again.

    The long text in 16 bits comes last, and is there if anything is in 16 bits. So with replies.
    """
    narrow = forced.narrow if forced.long_narrow is None else (*forced.narrow, forced.long_narrow)
    everything = (*forced.scored, forced.long, *forced.alone, *narrow)
    rows = np.array([len(scored.targets) for scored in everything], np.int64)
    stacked = {
        field.name: np.concatenate([getattr(scored, field.name) for scored in everything])
        for field in fields(Scored)
    }
    replies = _pack((*forced.answered_alone, *forced.answered_narrow))
    return {**stacked, **replies, "rows": rows, "again": np.array(forced.again, np.int64)}


def _decode_forced(stored: Arrays, chosen: tuple[int, ...]) -> TeacherForced:
    ends = np.cumsum(stored["rows"])[:-1]
    parts = zip(*(np.split(stored[field.name], ends) for field in fields(Scored)), strict=True)
    everything = tuple(Scored(*part) for part in parts)
    count = len(chosen)
    again = tuple(stored["again"].tolist())
    narrow = everything[count + 1 + len(again) :]
    replies = tuple(map(tuple, _unpack(stored)))
    return TeacherForced(
        conversations=chosen,
        scored=everything[:count],
        long=everything[count],
        again=again,
        alone=everything[count + 1 : count + 1 + len(again)],
        narrow=narrow[: len(again)],
        long_narrow=narrow[-1] if narrow else None,
        answered_alone=replies[: len(again)],
        answered_narrow=replies[len(again) :],
    )
