"""An engine whose answers are kept as they come, so that a run that was stopped goes on.

In: a way to open an engine, and the `AnswerCache` of the model it runs. Out: the same engine to
those who ask, which computes only what is not kept; if all is kept, no weight is loaded.

Prompts and texts are taken in slices, longest first as the engines themselves take them, and each
slice is an entry of the cache, written when it is done. A slice is a fixed number of prompts, whole
batches, so what shares a batch does not depend on where a run was stopped, and with it neither does
the last bit of any number. What is lost with a run is the slice that was being computed.

The largest magnitudes that came through fixed scales (`stated_scales`) are kept with every slice,
those of its own text alone, as another suite may share the slice and not the text before it; the
largest of all slices is what one run would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from verify.answer_cache import AnswerCache
from verify.engines import (
    Engine,
    EngineInfo,
    Ids,
    NarrowingEngine,
    OnProgress,
    ScoringEngine,
    StatedScale,
    WatchingEngine,
    by_length,
)
from verify.engines.log_probabilities import Passage, Scored
from verify.engines.packed import (
    pack_info,
    pack_json,
    pack_replies,
    pack_scored,
    unpack_info,
    unpack_json,
    unpack_replies,
    unpack_scored,
)

SLICE = 16
"""Prompts that are kept together, unless the batch is another: engines have 8 or 16 at once."""


def slice_of(batch: int | None) -> int:
    """The number of prompts in a slice: as many whole batches as SLICE holds, and at least one."""
    return SLICE if batch is None else batch * max(1, SLICE // batch)


class KeptEngine:
    """The engine that `open_engine` opens, once it is needed; what it answers is in `cache`."""

    def __init__(
        self, open_engine: Callable[[], Engine], cache: AnswerCache, *, batch: int | None = None
    ) -> None:
        self._open, self._cache, self._slice = open_engine, cache, slice_of(batch)
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._narrowed = False
        self._scales: dict[str, StatedScale] = {}

    @classmethod
    def around(cls, engine: Engine, cache: AnswerCache, *, batch: int | None = None) -> KeptEngine:
        """One that is open already, and closed with this one even if it is asked nothing."""
        kept = cls(lambda: engine, cache, batch=batch)
        kept._engine, kept._info = engine, engine.info
        return kept

    @property
    def info(self) -> EngineInfo:
        """How the answers were computed, kept or not."""
        if self._info is None:
            kept = self._cache.read("engine", {})
            self._info = unpack_info(kept) if kept is not None else self._opened().info
        return self._info

    def _opened(self) -> Engine:
        if self._engine is None:
            engine = self._engine = self._open()
            self._info = engine.info
            self._cache.write("engine", {}, pack_info(engine.info))
            if self._narrowed:
                _narrow(engine)
        return self._engine

    def generate(
        self,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[int]]:
        """Replies, slice by slice."""
        replies: list[list[int]] = [[] for _ in prompts]
        done = 0
        for places in by_length(prompts, self._slice):
            part = [list(prompts[place]) for place in places]
            asked = {
                "prompts": part,
                "max_new_tokens": max_new_tokens,
                "stop_ids": sorted(stop_ids),
                "narrow": self._narrowed,
            }
            kept = self._cache.read("answers", asked)
            if kept is None:
                found = self._opened().generate(
                    part,
                    max_new_tokens=max_new_tokens,
                    stop_ids=stop_ids,
                    on_progress=_part_of(on_progress, done, len(prompts)),
                )
                self._cache.write("answers", asked, pack_replies(found))
            else:
                found = unpack_replies(kept)
            for place, reply in zip(places, found, strict=True):
                replies[place] = reply
            done = _advance(on_progress, done + len(places), len(prompts), kept is not None)
        return replies

    def score(
        self,
        passages: Sequence[Passage],
        *,
        top: int,
        always: Ids = (),
        on_progress: OnProgress | None = None,
    ) -> list[Scored]:
        """Log-probabilities, slice by slice."""
        scored: dict[int, Scored] = {}
        for places in by_length([passage.ids for passage in passages], self._slice):
            part = [passages[place] for place in places]
            asked = {
                "passages": [_question(passage) for passage in part],
                "top": top,
                "always": list(always),
                "narrow": self._narrowed,
            }
            kept = self._cache.read("scores", asked)
            if kept is None:
                report = _part_of(on_progress, len(scored), len(passages))
                found = self._score(part, top, always, report, asked)
            else:
                found = unpack_scored(kept, len(part))
                self._see(StatedScale(*scale) for scale in unpack_json(kept))
            scored |= dict(zip(places, found, strict=True))
            _advance(on_progress, len(scored), len(passages), kept is not None)
        return [scored[place] for place in range(len(passages))]

    def _score(
        self,
        part: Sequence[Passage],
        top: int,
        always: Ids,
        on_progress: OnProgress | None,
        asked: dict[str, Any],
    ) -> list[Scored]:
        engine = self._opened()
        assert isinstance(engine, ScoringEngine)
        found = engine.score(part, top=top, always=always, on_progress=on_progress)
        scales = engine.stated_scales() if isinstance(engine, WatchingEngine) else ()
        self._see(scales)
        listed = [[scale.name, scale.limit, scale.seen] for scale in scales]
        self._cache.write("scores", asked, {**pack_scored(found), **pack_json(listed)})
        return found

    def narrow(self) -> None:
        """Compute in 16 bits from now on, where the engine can (NARROWS)."""
        self._narrowed = True
        if self._engine is not None:
            _narrow(self._engine)

    def _see(self, scales: Iterable[StatedScale]) -> None:
        for scale in scales:
            before = self._scales.get(scale.name)
            if before is None or scale.seen > before.seen:
                self._scales[scale.name] = scale

    def stated_scales(self) -> tuple[StatedScale, ...]:
        """What all scored text sent through the scales, in this run and those before it."""
        return tuple(self._scales.values())

    def close(self) -> None:
        """Close the engine, if it was opened."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None


def _narrow(engine: Engine) -> None:
    assert isinstance(engine, NarrowingEngine)
    engine.narrow()


def _question(passage: Passage) -> list[Any]:
    """All of a passage that decides what is found along it."""
    picked = passage.candidates
    digest = None if picked is None else hashlib.sha256(picked.tobytes()).hexdigest()
    return [list(passage.ids), passage.start, digest, None if picked is None else picked.shape]


def _part_of(on_progress: OnProgress | None, before: int, total: int) -> OnProgress | None:
    """Progress of a slice as progress of the whole."""
    if on_progress is None:
        return None
    return lambda done, _: on_progress(before + done, total)


def _advance(on_progress: OnProgress | None, done: int, total: int, kept: bool) -> int:
    """Report what was found in the cache; an engine has reported what it computed."""
    if kept and on_progress is not None:
        on_progress(done, total)
    return done
