"""Paired differences, the number of prompts a decision takes, and what a suite can show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from verify.check import State
from verify.statistics import (
    Z_ONE_SIDED,
    Flips,
    Rate,
    count_flips,
    more_needed,
    say_needed,
    smallest_detectable_drop,
)

PASS, FAIL, UNSURE = State.PASS, State.FAIL, State.NOT_ENOUGH_EVIDENCE


def test_flips_are_counted_by_direction() -> None:
    pairs = [(True, True), (True, False), (True, False), (False, True), (False, False)]
    assert count_flips(pairs) == Flips(worse=2, better=1, total=5)
    assert Flips(2, 1, 5).drop == pytest.approx(0.2)
    assert Flips(0, 0, 0).drop is None


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (1, 0), (9, 2), (3, 14), (8, 8)])
def test_mcnemar_is_the_exact_two_sided_binomial_test(worse: int, better: int) -> None:
    flips = worse + better
    least = min(worse, better)
    expected = min(1.0, 2 * float(binom.cdf(least, flips, 0.5))) if flips else 1.0
    assert Flips(worse, better, 100).p_value == pytest.approx(expected)


@pytest.mark.parametrize("total", [10, 100, 1240])
def test_without_a_flip_the_bound_is_that_of_no_failure_in_n(total: int) -> None:
    low, high = Flips(0, 0, total).interval
    expected = Z_ONE_SIDED**2 / (total + Z_ONE_SIDED**2)
    assert (low, high) == pytest.approx((-expected, expected), rel=1e-4)


def test_the_ends_are_where_the_score_statistic_is_at_its_quantile() -> None:
    """The restricted likelihood is maximised by brute force here, not by the closed form."""
    worse, better, total = 12, 2, 50
    low, high = Flips(worse, better, total).interval
    for drop, z in ((low, Z_ONE_SIDED), (high, -Z_ONE_SIDED)):
        q = np.linspace(max(0, -drop) + 1e-9, (1 - drop) / 2 - 1e-9, 400_001)
        likelihood = (
            worse * np.log(q + drop)
            + better * np.log(q)
            + (total - worse - better) * np.log(1 - 2 * q - drop)
        )
        best = q[likelihood.argmax()]
        variance = total * (2 * best + drop * (1 - drop))
        assert (worse - better - total * drop) / math.sqrt(variance) == pytest.approx(z, abs=1e-3)


def test_the_upper_end_covers_the_true_drop_nineteen_times_in_twenty() -> None:
    total, lost, gained = 60, 0.06, 0.03
    covered = 0.0
    for worse in range(20):
        for better in range(15):
            stay = total - worse - better
            chance = multinomial.pmf(
                [worse, better, stay], total, [lost, gained, 1 - lost - gained]
            )
            if Flips(worse, better, total).interval[1] >= lost - gained:
                covered += float(chance)
    assert 0.94 < covered < 0.98


@pytest.mark.parametrize(
    ("flips", "edge"), [(Flips(50, 0, 50), (1, 1.0)), (Flips(0, 50, 50), (0, -1.0))]
)
def test_flips_of_everything_end_at_the_edge(flips: Flips, edge: tuple[int, float]) -> None:
    assert flips.interval[edge[0]] == edge[1]


@pytest.mark.parametrize(
    ("flips", "margin", "state"),
    [
        (Flips(0, 0, 268), 0.01, PASS),
        (Flips(0, 0, 267), 0.01, UNSURE),
        (Flips(0, 0, 0), 0.5, UNSURE),
        (Flips(30, 0, 100), 0.1, FAIL),
        (Flips(12, 2, 100), 0.1, UNSURE),
        (Flips(12, 12, 1240), 0.01, PASS),
        (Flips(40, 10, 1240), 0.01, FAIL),
        (Flips(0, 40, 100), 0.01, PASS),
    ],
)
def test_a_margin_is_met_missed_or_undecided(flips: Flips, margin: float, state: State) -> None:
    assert flips.decide(margin) is state


@pytest.mark.parametrize(
    ("flips", "margin", "needed"),
    [(Flips(0, 0, 20), 0.01, 268), (Flips(5, 5, 200), 0.01, 3092), (Flips(5, 5, 200), 0.04, 194)],
)
def test_how_many_prompts_are_needed(flips: Flips, margin: float, needed: int) -> None:
    assert flips.needed(margin) == needed


def test_with_the_needed_prompts_a_faithful_artifact_passes_four_times_in_five() -> None:
    share, margin = 0.04, 0.02
    total = Flips(20, 20, 1000).needed(margin)
    rng = np.random.default_rng(1)
    draws = rng.multinomial(total, [share / 2, share / 2, 1 - share], size=400)
    passed = sum(Flips(int(w), int(b), total).decide(margin) is PASS for w, b, _ in draws)
    assert 0.74 < passed / 400 < 0.88


@pytest.mark.parametrize(
    ("prompts", "share", "drop"),
    [(200, 0.05, 0.039), (1240, 0.02, 0.010), (2251, 0.10, 0.0166), (10, 0.02, 0.02)],
)
def test_the_smallest_drop_that_a_suite_shows(prompts: int, share: float, drop: float) -> None:
    assert smallest_detectable_drop(prompts, share) == pytest.approx(drop, abs=5e-4)


def test_a_suite_without_prompts_shows_nothing() -> None:
    assert smallest_detectable_drop(0, 0.05) is None


@pytest.mark.parametrize(
    ("hits", "of", "floor"), [(1, 1, 0.90), (19, 20, 0.90), (4, 5, 0.90), (9, 10, 0.75)]
)
def test_with_the_needed_prompts_the_same_share_decides_and_not_before(
    hits: int, of: int, floor: float
) -> None:
    needed = Rate(hits, of).needed(floor)
    assert needed is not None
    enough, too_few = -(-needed // of), (needed - 1) // of
    wanted = PASS if hits / of > floor else FAIL
    assert Rate(hits * enough, of * enough).decide(floor) is wanted
    assert Rate(hits * too_few, of * too_few).decide(floor) is UNSURE


def test_of_nothing_counted_the_least_that_can_pass_at_all_is_needed() -> None:
    assert Rate(0, 0).needed(0.90) == Rate(3, 3).needed(0.90) == 35
    assert Rate(9, 10).needed(0.90) is None


def test_what_is_needed_in_words() -> None:
    assert say_needed(139, 20) == "about 139 prompts needed"
    assert say_needed(35, 40) == "about 41 prompts needed"
    assert say_needed(None, 10) == "no number of prompts tells this from the limit"


@pytest.mark.parametrize(
    ("hits", "total", "share", "more"),
    [(0, 300, 0.01, 4), (3, 300, 0.01, 1), (4, 300, 0.01, 0), (300, 300, 0.01, 0), (0, 0, 0.1, 1),
     (2, 100, 0.10, 9)],
)  # fmt: skip
def test_what_cannot_be_lost_takes_more_of_it(
    hits: int, total: int, share: float, more: int
) -> None:
    assert more_needed(hits, total, share) == more
    assert hits + more > share * (total + more)
    assert not more or hits + more - 1 <= share * (total + more - 1)
