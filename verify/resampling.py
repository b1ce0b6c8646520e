"""A mean over tokens, with an interval from resampling the prompts they came from.

In: one array of values a prompt. Out: their mean over all tokens, and the 95 % percentile interval
of the bootstrap over prompts (scipy's, with a fixed seed: the same values, the same interval).

Tokens of one prompt rise and fall together, so an interval that counts each as one observation, as
llama-perplexity's does, is too narrow. With fewer than two prompts there is no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.check import State
from verify.engines.log_probabilities import Floats
from verify.statistics import CONFIDENCE

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean in nats a token, the ends of its interval, and what it was taken over."""

    value: float
    low: float
    high: float
    tokens: int
    prompts: int

    def decide(self, limit: float) -> State:
        """Whether the mean is at most `limit`; one that is no number is a failure."""
        if self.tokens and not np.isfinite(self.value):
            return State.FAIL
        if self.high <= limit:
            return State.PASS
        return State.FAIL if self.low > limit else State.NOT_ENOUGH_EVIDENCE

    def exp(self) -> float | None:
        """exp of the mean, if it is a number that JSON can hold."""
        return float(np.exp(self.value)) if abs(self.value) < 700 else None

    def __str__(self) -> str:
        return f"{self.value:.4g}, 95 % interval {self.low:.4g} to {self.high:.4g}"


def mean_by_prompt(values: Sequence[Floats]) -> Mean:
    """The mean over everything in `values`, resampled by array."""
    sums = np.array([array.sum() for array in values])
    counts = np.array([array.size for array in values], dtype=np.float64)
    tokens = int(counts.sum())
    value = float(sums.sum() / tokens) if tokens else float("nan")
    if len(values) < 2 or not np.isfinite(value):
        return Mean(value, float("-inf"), float("inf"), tokens, len(values))
    from scipy.stats import bootstrap  # half a second to import: only when it is asked for

    found = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Mean(value, float(found.low), float(found.high), tokens, len(values))
