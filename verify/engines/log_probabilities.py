"""What a model thinks of a given text: a few log-probabilities a token, and exactly what's left.

In: `Passage`, a sequence of ids whose tokens from `start` on are to be scored, each given all
before it (teacher forcing: one model's slip does not change what the next is compared on). Out:
`Scored`, for each of those tokens K candidates with their log-probabilities, and the logarithm of
the mass of all other tokens together.

A row of logits is as wide as the vocabulary: 128,256 float32 for Llama 3, half a megabyte a token.
`Reduction` takes rows as they are computed and keeps about 1 kB of each. The tail is summed from
the logits that are left out, not as 1 - sum, which would lose everything below 1e-16.

The reference picks the candidates: its `top` likeliest tokens, and always the token that follows
and the ids it was told to watch. An artifact is asked about the same ids. A server that names only
its own likeliest tokens leaves gaps: NaN, whose mass is counted in the tail.

Shapes: P scored tokens, K candidates, V the vocabulary. Natural logarithms, float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
ROWS_AT_ONCE = 64
"""Rows of logits that are held in float64 at a time: 66 MB for 128,256 tokens."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Ids, and where scoring begins: at least 1, and before their end.

    `candidates` is [P, K], or None to have them picked.
    """

    ids: tuple[int, ...]
    start: int
    candidates: Integers | None = None

    @property
    def targets(self) -> Integers:
        """The tokens that are scored, [P]."""
        return np.array(self.ids[self.start :], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Scored:
    """`candidates` and `log_probs` [P, K]; `log_tail` [P]; the two likeliest of all V, [P, 2].

    Candidates that a reference picked are in descending order, so the first is its own choice.
    """

    targets: Integers
    candidates: Integers
    log_probs: Floats
    log_tail: Floats
    best: Integers
    best_log_probs: Floats

    def part(self, rows: slice) -> Scored:
        """Some of the tokens."""
        return Scored(*(getattr(self, field.name)[rows] for field in fields(self)))

    def log_prob_of(self, ids: Integers | int) -> Floats:
        """Log-probability [P] of one candidate a row; NaN where it is none."""
        wanted = np.broadcast_to(np.asarray(ids), self.targets.shape)
        hit = self.candidates == wanted[:, None]
        chosen = np.take_along_axis(self.log_probs, hit.argmax(1)[:, None], 1)[:, 0]
        return np.where(hit.any(1), chosen, np.nan)


class Reduction:
    """Rows of logits in, in the order of the passage's scored tokens; a `Scored` out."""

    def __init__(self, passage: Passage, *, top: int, always: Sequence[int] = ()) -> None:
        self._targets = passage.targets
        self._candidates = passage.candidates
        self._top = top
        self._always = list(always)
        self._done = 0
        self._parts: list[tuple[Integers, Floats, Floats, Integers, Floats]] = []

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """The next rows, [n, V]; they may be overwritten afterwards."""
        for start in range(0, len(logits), ROWS_AT_ONCE):
            rows = logits[start : start + ROWS_AT_ONCE].astype(np.float64)
            self._parts.append(self._reduce(rows))
            self._done += len(rows)

    def _reduce(self, rows: Floats) -> tuple[Integers, Floats, Floats, Integers, Floats]:
        here = slice(self._done, self._done + len(rows))
        rows -= rows.max(1, keepdims=True)
        weights = np.exp(rows)
        log_sum = np.log(weights.sum(1, keepdims=True))
        ids = self._pick(rows, here) if self._candidates is None else self._candidates[here]
        log_probs = np.take_along_axis(rows, ids, 1) - log_sum
        np.put_along_axis(weights, ids, 0, 1)
        with np.errstate(divide="ignore"):  # nothing is left where every token is a candidate
            log_tail = np.log(weights.sum(1)) - log_sum[:, 0]
        best = np.empty((len(rows), 2), dtype=np.int64)
        best_log_probs = np.empty((len(rows), 2))
        for place in range(2):
            found = rows.argmax(1)[:, None]
            best[:, place] = found[:, 0]
            best_log_probs[:, place] = (np.take_along_axis(rows, found, 1) - log_sum)[:, 0]
            np.put_along_axis(rows, found, -np.inf, 1)
        return ids, log_probs, log_tail, best, best_log_probs

    def _pick(self, rows: Floats, here: slice) -> Integers:
        """The likeliest ids of each row, likeliest first, the next token and the watched among."""
        wanted = rows.copy()
        np.put_along_axis(wanted, self._targets[here][:, None], np.inf, 1)
        wanted[:, self._always] = np.inf
        top = min(max(self._top, 1 + len(self._always)), rows.shape[1])
        ids = np.argpartition(-wanted, top - 1, axis=1)[:, :top]
        ids.sort(1)
        order = np.argsort(-np.take_along_axis(rows, ids, 1), axis=1, kind="stable")
        return np.take_along_axis(ids, order, 1)

    def finish(self) -> Scored:
        """Everything that was added, which must be all of it."""
        assert self._done == len(self._targets), (self._done, len(self._targets))
        parts: list[Any] = [np.concatenate(part) for part in zip(*self._parts, strict=True)]
        return Scored(self._targets, *parts)
