"""Rates and differences with the uncertainty they have, and how many prompts a decision needs.

In: counts. Out: intervals, p-values, sample sizes, and a State that says whether the numbers can
tell at all. Means have theirs in `bootstrap.py`. scipy does the computing; two methods are used:

    Rate    k of n, Wilson's interval (Wilson 1927; Brown, Cai and DasGupta 2001): 100 of 100 is not
            "100 % plus or minus 0" but 96.3 % or more
    Flips   the same prompts asked of two models. Only prompts that one has right and the other
            wrong carry information: McNemar's exact test asks whether they fall to one side, and
            Tango's score interval (Statistics in Medicine 17, 1998) says how large the drop is

Both count every prompt once and take prompts for independent of each other: each turn of a
conversation is one.

A gate on a Rate asks that its lower end reach a floor, one on Flips that the largest plausible drop
stay below a limit (non-inferiority); each is failed only if even the kind end of the interval is
beyond it. Between the two the numbers cannot tell: `decide` says so, and `needed` how many prompts
could. What cannot be lost cannot be shown to be kept either: `more_needed`.

No library here has Tango's interval for paired data. It is the set of drops that his score
statistic does not reject, found with scipy's root finder; with flips to one side only its ends are
Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verify.check import State

CONFIDENCE = 0.95
Z_TWO_SIDED = 1.959963984540054
Z_ONE_SIDED, Z_POWER = 1.6448536269514722, 0.8416212335729143
"""Normal quantiles of 0.975, and of 0.95 and 0.80: a one-sided test at 5 % that finds 4 drops of
5."""


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

    def needed(self, floor: float) -> int | None:
        """Prompts that decide, given this share (or that all are hits, if nothing was counted).

        Wilson's interval holds what the score test does not reject, so this is exact. None where
        the share is the floor: no number tells them apart.
        """
        share = self.hits / self.total if self.total else 1.0
        if share == floor:
            return None
        wanted = Z_TWO_SIDED**2 * floor * (1 - floor) / (share - floor) ** 2
        return math.ceil(wanted - 1e-9)


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


def more_needed(hits: int, total: int, share: float) -> int:
    """How many more hits make them more than `share` of all; 0 where they are.

    A model that is right in no more than the margin cannot lose more than it, and what cannot fail
    has not passed.
    """
    short = share * total - hits
    if total and short < -1e-9:
        return 0
    return math.floor(short / (1 - share) + 1e-9) + 1


def say_needed(needed: int | None, total: int) -> str:
    """The end of a sentence about `total` prompts that cannot tell."""
    if needed is None:
        return "no number of prompts tells this from the limit"
    return f"about {max(needed, total + 1)} prompts needed"


def smallest_detectable_drop(prompts: int, flip_share: float) -> float | None:
    """The drop that `prompts` show 4 times in 5 (one-sided, 5 %) if `flip_share` of them flip.

    A drop cannot exceed the share that flips. None for no prompt.
    """
    if not prompts:
        return None
    return min(flip_share, (Z_ONE_SIDED + Z_POWER) * math.sqrt(flip_share / prompts))
