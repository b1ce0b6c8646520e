"""Rates and differences with the uncertainty they have, and how many prompts a decision needs.

In: counts, or an array of numbers a prompt. Out: intervals, p-values, sample sizes, and a State
that says whether the numbers can tell at all. scipy does the computing; three methods are used:

    Rate    k of n, Wilson's interval (Wilson 1927; Brown, Cai and DasGupta 2001): 100 of 100 is not
            "100 % plus or minus 0" but 96.3 % or more
    Flips   the same prompts asked of two models. Only prompts that one has right and the other
            wrong carry information: McNemar's exact test asks whether they fall to one side, and
            Tango's score interval (Statistics in Medicine 17, 1998) says how large the drop is
    Mean    of values that come in prompts, percentile bootstrap over prompts with a fixed seed.
            Tokens of one prompt rise and fall together, so an interval that counts each as one
            observation, as llama-perplexity's does, is too narrow; with one prompt there is none

A gate on a Rate asks that its lower end reach a floor, one on Flips or a Mean that the largest
plausible drop or mean stay below a limit (non-inferiority); each is failed only if even the kind
end of the interval is beyond it. Between the two the numbers cannot tell, and `decide` says so.

No library here has Tango's interval for paired data. It is the set of drops that his score
statistic does not reject, found with scipy's root finder; with flips to one side only its ends are
Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.check import State
from verify.engines.log_probabilities import Floats

CONFIDENCE = 0.95
SEED = 20261121
RESAMPLES = 2000
Z_ONE_SIDED, Z_POWER = 1.6448536269514722, 0.8416212335729143
"""Normal quantiles of 0.95 and 0.80: a one-sided test at 5 % that finds 4 drops of 5."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `total`; with a total of 0 there is no rate, and the interval is all of 0 to 1."""

    hits: int
    total: int

    @property
    def value(self) -> float | None:
        """The share, or None for nothing counted."""
        return self.hits / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's two-sided 95 % interval."""
        if not self.total:
            return 0.0, 1.0
        from scipy.stats import binomtest  # half a second to import: only when a rate is asked for

        found = binomtest(self.hits, self.total).proportion_ci(CONFIDENCE, method="wilson")
        return float(found.low), float(found.high)

    def decide(self, floor: float) -> State:
        """Whether the true rate reaches `floor`, as far as these counts can tell."""
        low, high = self.interval
        if low >= floor:
            return State.PASS
        return State.FAIL if high < floor else State.NOT_ENOUGH_EVIDENCE


def count(flags: list[bool]) -> Rate:
    """The rate of True in `flags`."""
    return Rate(sum(flags), len(flags))


@dataclass(frozen=True, slots=True)
class Flips:
    """The same `total` prompts to two models: `worse` only the first had right, `better` only the
    second."""

    worse: int
    better: int
    total: int

    @property
    def drop(self) -> float | None:
        """The share lost, less the share gained; None for no prompt."""
        return (self.worse - self.better) / self.total if self.total else None

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test that flips fall to both sides alike."""
        if not self.worse + self.better:
            return 1.0
        from scipy.stats import binomtest

        return float(binomtest(self.worse, self.worse + self.better, 0.5).pvalue)

    @property
    def interval(self) -> tuple[float, float]:
        """Tango's interval for the drop, 95 % one-sided at each end (so 90 % between them)."""
        if not self.total:
            return -1.0, 1.0
        return self._bound(Z_ONE_SIDED), self._bound(-Z_ONE_SIDED)

    def _bound(self, z: float) -> float:
        """The drop at which the score statistic is `z`: the lower end for a positive one."""
        from scipy.optimize import brentq

        edge = 1 - 1e-12
        low, high = self._score(-edge) - z, self._score(edge) - z
        if low <= 0 or high >= 0:  # nothing but flips to one side: there is no such drop
            return -1.0 if low <= 0 else 1.0
        return float(brentq(lambda drop: self._score(drop) - z, -edge, edge, xtol=1e-12))

    def _score(self, drop: float) -> float:
        """Tango's statistic; `q` is the likeliest share of `better` were the true drop `drop`."""
        n, b, c = self.total, self.worse, self.better
        linear = -b - c + (2 * n - b + c) * drop
        constant = -c * drop * (1 - drop)
        q = (math.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)
        variance = n * (2 * q + drop * (1 - drop))
        return (b - c - n * drop) / math.sqrt(max(variance, 1e-300))

    def decide(self, margin: float) -> State:
        """Whether the true drop is at most `margin`, as far as these flips can tell."""
        low, high = self.interval
        if high <= margin:
            return State.PASS
        return State.FAIL if low > margin else State.NOT_ENOUGH_EVIDENCE

    def needed(self, margin: float) -> int:
        """Prompts to pass with: given these shares of flips, and 4 times in 5 if nothing is lost.

        The score statistic grows with the root of the number of prompts, so the first is exact.
        """
        share = (self.worse + self.better) / self.total if self.total else 0.0
        for_flips = (Z_ONE_SIDED + Z_POWER) ** 2 * share / margin**2
        for_none = Z_ONE_SIDED**2 * (1 - margin) / margin
        score = self._score(margin) if self.total else 0.0
        as_seen = self.total * (Z_ONE_SIDED / score) ** 2 if score < 0 else 0.0
        return math.ceil(max(for_flips, for_none, as_seen) - 1e-9)


def count_flips(pairs: Sequence[tuple[bool, bool]]) -> Flips:
    """Flips of (first model right, second model right), a pair a prompt."""
    worse = sum(first and not second for first, second in pairs)
    better = sum(second and not first for first, second in pairs)
    return Flips(worse, better, len(pairs))


def smallest_detectable_drop(prompts: int, flip_share: float) -> float | None:
    """The drop that `prompts` show 4 times in 5 (one-sided, 5 %) if `flip_share` of them flip.

    A drop cannot exceed the share that flips. None for no prompt.
    """
    if not prompts:
        return None
    return min(flip_share, (Z_ONE_SIDED + Z_POWER) * math.sqrt(flip_share / prompts))


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, the ends of its interval, and how many values from how many prompts it is of."""

    value: float
    low: float
    high: float
    values: int
    prompts: int

    def decide(self, limit: float) -> State:
        """Whether the mean is at most `limit`; one that is no number is a failure."""
        if self.values and not math.isfinite(self.value):
            return State.FAIL
        if self.high <= limit:
            return State.PASS
        return State.FAIL if self.low > limit else State.NOT_ENOUGH_EVIDENCE

    def numbers(self, name: str) -> dict[str, float | None]:
        """The mean and its interval under `name`; what JSON cannot hold is None."""
        found = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: value if math.isfinite(value) else None for key, value in found.items()}

    def exp(self) -> float | None:
        """exp of the mean, if it is a number that JSON can hold."""
        return math.exp(self.value) if abs(self.value) < 700 else None

    def __str__(self) -> str:
        return f"{self.value:.4g}, 95 % interval {self.low:.4g} to {self.high:.4g}"


def mean_by_prompt(values: Sequence[Floats]) -> Mean:
    """The mean over everything in `values`, an array a prompt, resampled by prompt."""
    sums = np.array([array.sum() for array in values])
    counts = np.array([array.size for array in values], dtype=np.float64)
    total = int(counts.sum())
    value = float(sums.sum() / total) if total else float("nan")
    if len(values) < 2 or not np.isfinite(value):
        return Mean(value, float("-inf"), float("inf"), total, len(values))
    from scipy.stats import bootstrap

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
    return Mean(value, float(found.low), float(found.high), total, len(values))
