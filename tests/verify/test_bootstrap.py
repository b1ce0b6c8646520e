"""Means that are resampled by conversation: how sure they are, and when they decide nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from verify.bootstrap import LEAST, mean_by_prompt
from verify.check import State
from verify.statistics import Rate

PASS, FAIL, UNSURE = State.PASS, State.FAIL, State.NOT_ENOUGH_EVIDENCE


def test_the_bootstrap_is_over_prompts_and_repeats_itself() -> None:
    values = [np.array([1.0])] * 80 + [np.array([0.0])] * 20
    mean = mean_by_prompt(values)
    assert mean == mean_by_prompt(values)
    assert (mean.value, mean.values, mean.prompts, mean.conversations) == (0.8, 100, 100, 100)
    assert (mean.low, mean.high) == pytest.approx(Rate(80, 100).interval, abs=0.02)


def test_prompts_are_resampled_and_not_tokens() -> None:
    rng = np.random.default_rng(0)
    prompts = [np.full(50, rng.exponential()) for _ in range(40)]
    mean = mean_by_prompt(prompts)
    assert mean.value == pytest.approx(np.concatenate(prompts).mean())
    error = np.std([p[0] for p in prompts]) / np.sqrt(40)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert mean.decide(mean.high) is PASS
    assert mean.decide(mean.low * 0.99) is FAIL
    assert mean.decide(mean.value) is UNSURE


def test_tokens_of_one_prompt_are_no_observations_of_their_own() -> None:
    """Ten prompts of a hundred equal tokens tell as much as ten tokens do."""
    of_prompts = np.random.default_rng(2).normal(size=10)
    long = mean_by_prompt([np.full(100, value) for value in of_prompts])
    short = mean_by_prompt([np.array([value]) for value in of_prompts])
    assert (long.low, long.high) == pytest.approx((short.low, short.high))
    assert long.values == 1000


def test_turns_of_one_conversation_are_no_observations_of_their_own() -> None:
    """Four equal turns of ten conversations tell as much as ten prompts, and not as forty do."""
    of_conversations = np.random.default_rng(3).normal(size=10)
    turns = [np.array([value]) for value in of_conversations for _ in range(4)]
    names = [f"c{i}" for i in range(10) for _ in range(4)]
    together = mean_by_prompt(turns, names)
    once = mean_by_prompt([np.array([value]) for value in of_conversations])
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    assert (together.prompts, together.conversations) == (40, 10)
    apart = mean_by_prompt(turns)
    assert apart.high - apart.low < 0.7 * (together.high - together.low)


@pytest.mark.parametrize("conversations", [0, 1, 2, LEAST - 1])
def test_a_few_conversations_decide_nothing_however_equal_they_are(conversations: int) -> None:
    mean = mean_by_prompt([np.array([0.5])] * conversations)
    assert (mean.decide(1.0), mean.decide(0.1)) == (UNSURE, UNSURE)
    assert mean.needed(1.0) == LEAST
    more = mean_by_prompt([np.array([0.5])] * LEAST)
    assert (more.decide(1.0), more.decide(0.1)) == (PASS, FAIL)


def test_many_turns_of_a_few_conversations_decide_nothing_either() -> None:
    mean = mean_by_prompt([np.array([0.5])] * 50, ["a", "b"] * 25)
    assert mean.decide(1.0) is UNSURE


def test_without_two_prompts_there_is_no_interval() -> None:
    assert mean_by_prompt([np.array([0.5])]).numbers("x")["x_low"] is None


def test_a_mean_that_is_no_number_fails() -> None:
    assert mean_by_prompt([np.array([np.nan]), np.array([0.0])]).decide(1.0) is FAIL


@pytest.mark.parametrize("limit", [0.9, 1.6])
def test_with_the_needed_prompts_the_same_mean_decides(limit: float) -> None:
    """Beyond the limit it fails, within it it passes; with half as many prompts neither."""
    rng = np.random.default_rng(4)
    few = [np.array([value]) for value in rng.exponential(size=12)]
    mean = mean_by_prompt(few)
    assert mean.decide(limit) is UNSURE
    needed = mean.needed(limit)
    assert needed is not None
    assert needed > 12

    def repeated(times: int) -> State:
        return mean_by_prompt(few * times).decide(limit)

    assert repeated(math.ceil(1.3 * needed / 12)) is (PASS if mean.value < limit else FAIL)
    assert repeated(max(1, needed // 24)) is UNSURE


def test_no_number_of_prompts_tells_a_mean_from_itself() -> None:
    mean = mean_by_prompt([np.array([0.0]), np.array([1.0])] * 10)
    assert mean.decide(0.5) is UNSURE
    assert mean.needed(0.5) is None
