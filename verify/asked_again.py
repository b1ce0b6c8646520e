"""What the reference decides and calls when it is asked once more: the noise of discrete answers.

In: a `Reference` some of whose conversations were scored and answered again, each in a batch of its
own and in 16 bits (`teacher_forcing.py`). Out: `Decisions` to call, and `AnsweredAgain`.

One model gives two answers where two tokens are nearly as likely, since the order of additions
depends on the batch. A few conversations seldom show such a turn, so decisions are also counted by
how far they are from turning: those, of all that were scored, whose margin is no larger than the
most that a margin moved by. These counts are shown beside the artifact's; `noise_floor.py` says
when they leave nothing to decide. The units of margins are nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from verify.check import Number
from verify.engines import Ids
from verify.engines.log_probabilities import Scored
from verify.equality import Tier, tier_of_replies, within
from verify.evidence import Reference, TeacherForced, read_answers
from verify.statistics import Rate, count
from verify.trigger import decision_margin


@dataclass(frozen=True, slots=True)
class Decisions:
    """Of `again` decisions how many turned, alone and in 16 bits; `shift` is the most that a margin
    moved by, `within` how many of `all` decisions it could turn."""

    again: int
    turned_alone: int
    turned_narrow: int
    shift: float
    within: int
    all: int

    def numbers(self) -> dict[str, Number]:
        """For a verdict."""
        return {
            "decisions_again": self.again,
            "decisions_turned_alone": self.turned_alone,
            "decisions_turned_in_16_bits": self.turned_narrow,
            "decision_shift": self.shift,
            "decisions_within_shift": self.within,
            "decisions": self.all,
        }


@dataclass(frozen=True, slots=True)
class AnsweredAgain:
    """Of conversations with tools: how often the reference makes its own calls when asked again."""

    alone: Rate
    narrow: Rate

    def numbers(self) -> dict[str, Number]:
        """Beside an artifact's."""
        return {
            "reference_again": self.alone.total,
            "reference_same_alone": self.alone.hits,
            "reference_same_in_16_bits": self.narrow.hits if self.narrow.total else None,
        }

    def __str__(self) -> str:
        narrow = f", {self.narrow.hits} in 16 bits" if self.narrow.total else ""
        return f"{self.alone.hits} of {self.alone.total} alone{narrow}"


def measure_decisions(reference: Reference) -> Decisions | None:
    """None where no decision was scored again."""
    base = reference.forced
    assert base is not None
    once = _margins(reference, base.again, base.scored_again)
    alone, narrow = (
        [(once[at], margin) for at, margin in _margins(reference, base.again, found).items()]
        for found in (base.alone, base.narrow)
    )
    if not alone:
        return None
    shifts = [abs(a - b) for a, b in (*alone, *narrow)]
    shift = max(filter(math.isfinite, shifts), default=0.0)
    every = _margins(reference, range(len(base.scored)), base.scored)
    return Decisions(
        again=len(alone),
        turned_alone=sum((a > 0) != (b > 0) for a, b in alone),
        turned_narrow=sum((a > 0) != (b > 0) for a, b in narrow),
        shift=shift,
        within=sum(abs(margin) <= shift for margin in every.values()),
        all=len(every),
    )


def _margins(
    reference: Reference, positions: Sequence[int], found: Sequence[Scored]
) -> dict[int, float]:
    """Margins by position among what was scored, where there is a decision; `found` may be none."""
    base = reference.forced
    assert base is not None
    margins: dict[int, float] = {}
    for at, scored in zip(positions, found, strict=False):
        index = base.conversations[at]
        reply = scored.part(slice(-len(reference.answers[index].ids), None))
        margin = decision_margin(reference, index, reply)
        if margin is not None:
            margins[at] = margin
    return margins


def answers_again(reference: Reference, equality: Tier) -> AnsweredAgain | None:
    """Whether the reference makes its own calls again; None where it was not asked to."""
    base = reference.forced
    if base is None or not base.answered_alone:
        return None
    alone, narrow = (
        count(_same_calls(reference, base, replies, equality))
        for replies in (base.answered_alone, base.answered_narrow)
    )
    return AnsweredAgain(alone, narrow) if alone.total else None


def _same_calls(
    reference: Reference, base: TeacherForced, replies: Sequence[Ids], equality: Tier
) -> list[bool]:
    """For every conversation with tools that was answered again; `replies` may be none."""
    same = []
    indices = [base.conversations[at] for at in base.again[: len(replies)]]
    for index, answer in zip(indices, read_answers(reference, replies, indices), strict=True):
        tools = reference.conversations[index].tools
        if tools:
            tier = tier_of_replies(reference.answers[index].reply, answer.reply, tools)
            same.append(within(tier, equality))
    return same
