"""Means of values that come in prompts, with the uncertainty they have.

In: an array of numbers a prompt, perhaps the conversation of each. Out: a `Mean`: its interval, a
State that says whether the numbers can tell at all, and how many prompts could.

The interval is scipy's percentile bootstrap with a fixed seed, over conversations. Tokens of one
prompt rise and fall together, and so do turns of one conversation, which share its history, its
tools and its theme; an interval that counts each token as one observation, as llama-perplexity's
does, is too narrow. (Paired counts take every turn for a prompt of its own: `statistics.py`.)

A gate asks that the upper end stay below a limit, and fails only if the lower end is beyond it. The
ends of a bootstrap from a few conversations are too close to each other, and of equal values they
are one: with fewer than LEAST nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.check import State
from verify.engines.log_probabilities import Floats
from verify.statistics import CONFIDENCE

SEED = 20261121
RESAMPLES = 2000
LEAST = 8
"""Fewer conversations than this decide about no mean."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, the ends of its interval, and how many values it is of, from how many prompts of how
    many conversations."""

    value: float
    low: float
    high: float
    values: int
    prompts: int
    conversations: int

    def decide(self, limit: float) -> State:
        """Whether the mean is at most `limit`; one that is no number is a failure."""
        if self.values and not math.isfinite(self.value):
            return State.FAIL
        if self.conversations < LEAST:
            return State.NOT_ENOUGH_EVIDENCE
        if self.high <= limit:
            return State.PASS
        return State.FAIL if self.low > limit else State.NOT_ENOUGH_EVIDENCE

    def needed(self, limit: float) -> int | None:
        """Prompts that decide, if the mean stays and its interval narrows as their root.

        None where the mean is the limit, or no number.
        """
        if self.conversations < 2:
            return LEAST
        gap = limit - self.value
        if not (gap and math.isfinite(gap)):
            return None
        half = self.high - self.value if gap > 0 else self.value - self.low
        return max(LEAST, math.ceil(self.prompts * (half / gap) ** 2 - 1e-9))

    def numbers(self, name: str) -> dict[str, float | None]:
        """The mean and its interval under `name`; what JSON cannot hold is None."""
        found = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    def exp(self) -> float | None:
        """exp of the mean, if it is a number that JSON can hold."""
        return math.exp(self.value) if abs(self.value) < 700 else None

    def __str__(self) -> str:
        return f"{self.value:.4g}, 95 % interval {self.low:.4g} to {self.high:.4g}"


def mean_by_prompt(values: Sequence[Floats], conversations: Sequence[str] | None = None) -> Mean:
    """The mean over everything in `values`, an array a prompt, resampled by conversation.

    `conversations` names that of every prompt; without it each prompt is one of its own.
    """
    names = conversations if conversations is not None else [str(i) for i in range(len(values))]
    sums, counts = _by_conversation(values, names)
    total = int(counts.sum())
    value = float(sums.sum() / total) if total else float("nan")
    if len(sums) < 2 or not np.isfinite(value):
        return Mean(value, float("-inf"), float("inf"), total, len(values), len(sums))
    from scipy.stats import bootstrap  # half a second to import: only when a mean is asked for

    found = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Mean(value, float(found.low), float(found.high), total, len(values), len(sums))


def _by_conversation(values: Sequence[Floats], names: Sequence[str]) -> tuple[Floats, Floats]:
    """Of every conversation the sum of its values and how many they are."""
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    sums, counts = np.zeros(len(places)), np.zeros(len(places))
    for name, array in zip(names, values, strict=True):
        sums[places[name]] += array.sum()
        counts[places[name]] += array.size
    return sums, counts
