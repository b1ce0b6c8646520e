"""What a check gives back: findings, a verdict with its numbers, and the exit code they add up to.

A check looks at one thing about one artifact and answers with an `Outcome`. Its findings name what
is wrong, one subject each (a tensor, a string, a prompt); its verdict decides; its numbers are the
evidence a reader can recompute. There are three verdicts, not two: a suite of twenty prompts cannot
show that an artifact is right nineteen times in twenty, and saying "pass" there would be a lie.

    pass                  the evidence is enough and good          exit code 0
    fail                  a gate failed                            exit code 1
    not_enough_evidence   too little was measured to decide        exit code 3

One failure outweighs everything, missing evidence outweighs passes. Exit code 2 is bad input, which
is an exception and never a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeVar

E_contra = TypeVar("E_contra", contravariant=True)
Number = int | float | str | None


class State(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105  not a password
    FAIL = "fail"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


EXIT_CODES = {State.PASS: 0, State.FAIL: 1, State.NOT_ENOUGH_EVIDENCE: 3}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, or is worth knowing: what it is about, and what."""

    subject: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision, one sentence why, and the numbers it rests on."""

    state: State
    reason: str
    numbers: Mapping[str, Number] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured of one subject, right or wrong, to be drawn; None for no finite number."""

    subject: str
    values: Mapping[str, int | float | None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One check on one artifact. `findings` may be cut short; the numbers count all of them.

    `points` are all that was measured, in the order of the file or suite.
    """

    check: str
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    points: tuple[Point, ...] = ()


def finite(value: float | None) -> float | None:
    """A number that JSON can hold, or None."""
    return value if value is not None and math.isfinite(value) else None


class Check(Protocol[E_contra]):
    """A function from the evidence it needs to an Outcome."""

    def __call__(self, evidence: E_contra, /) -> Outcome:
        """Look, and decide."""
        ...


def total_state(states: Iterable[State]) -> State:
    """The state of several checks together; none at all is not enough evidence."""
    found = set(states)
    for state in (State.FAIL, State.NOT_ENOUGH_EVIDENCE, State.PASS):
        if state in found:
            return state
    return State.NOT_ENOUGH_EVIDENCE


def exit_code(states: Iterable[State]) -> int:
    """The process's exit code for these states: 0, 1 or 3."""
    return EXIT_CODES[total_state(states)]
