"""Rates with the uncertainty they have: k of n, and Wilson's interval around it.

In: counts. Out: a rate and the two ends of its 95 % interval, computed by scipy. Wilson's interval
(Wilson 1927; Brown, Cai and DasGupta 2001) keeps its promise for small n and for rates near 0 and
1, where the textbook one does not: 100 of 100 is not "100 % plus or minus 0", but 96.3 % or more.

A gate asks that the *lower* end be at least the floor, and calls it a failure only when the *upper*
end is below; between the two the numbers cannot tell, and `decide` says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from verify.check import State

CONFIDENCE = 0.95


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
