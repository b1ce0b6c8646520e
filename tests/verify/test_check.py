"""Verdicts, exit codes and intervals."""

from __future__ import annotations

import pytest

from verify.check import State, exit_code, total_state
from verify.statistics import Rate, count

PASS, FAIL, UNSURE = State.PASS, State.FAIL, State.NOT_ENOUGH_EVIDENCE


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([PASS, PASS], 0),
        ([PASS, FAIL, UNSURE], 1),
        ([PASS, UNSURE], 3),
        ([], 3),
    ],
)
def test_exit_codes(states: list[State], code: int) -> None:
    assert exit_code(states) == code


def test_nothing_checked_is_never_a_pass() -> None:
    assert total_state([]) is UNSURE


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (100, 100, 0.9630, 1.0),
        (0, 300, 0.0, 0.0126),
        (20, 20, 0.8389, 1.0),
        (81, 100, 0.7222, 0.8749),
    ],
)
def test_wilson_intervals_known_from_tables(hits: int, total: int, low: float, high: float) -> None:
    assert Rate(hits, total).interval == pytest.approx((low, high), abs=5e-5)


def test_a_rate_of_nothing() -> None:
    assert Rate(0, 0).value is None
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert count([True, False, True]) == Rate(2, 3)


@pytest.mark.parametrize(
    ("hits", "total", "state"),
    [(35, 35, PASS), (34, 34, UNSURE), (20, 40, FAIL), (0, 0, UNSURE), (87, 100, UNSURE)],
)
def test_a_floor_of_nine_tenths(hits: int, total: int, state: State) -> None:
    assert Rate(hits, total).decide(0.90) is state
