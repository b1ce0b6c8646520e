"""The decision to call, as a check: where the reference's answer begins, a tool call or not?

In: both models along the reference's replies. Out: the Outcome `trigger`, a point a conversation.

The decision falls in one row of logits, at the first token of the answer that is no white space:
after the reasoning, if the reply reasons. There the margin of `<tool_call>` is its log-odds against
the likeliest other token; above zero, a greedy decoder calls. So one pass over a prompt tells more
than one reply does, and what nearly turned shows too.

Turned off and turned on are two kinds of damage, and a suite with many more prompts of one kind
would hide the other: both are counted apart. The share of unchanged decisions must reach the gate's
floor; a kind fails by itself where even the kind end of its interval is below it. Where the
reference calls so seldom that all its calls could turn off within the floor, there is not enough
evidence, and so it is without any call at all.

A tag that is several tokens is watched by its first one, which other text may begin with too; the
verdict then says so. Reasoning that never ends has no decision and is left out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from convert.rendering import Tokenizer
from verify.bootstrap import mean_by_prompt
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite
from verify.distributions import trigger_margin
from verify.engines.log_probabilities import Scored
from verify.evidence import Answer, Reference
from verify.gate import Thresholds
from verify.statistics import Rate, count, more_needed, say_needed
from verify.teacher_forcing import watched_ids
from verify.tool_calls import OPEN

NAME = "trigger"
FINDINGS_SHOWN = 20
Pairs = Sequence[tuple[int, Scored, Scored]]
"""Conversations by index, and both models along the reference's reply."""


@dataclass(frozen=True, slots=True)
class _Decision:
    """One conversation with tools: both margins, in nats."""

    index: int
    ours: float
    theirs: float

    @property
    def calls(self) -> bool:
        return self.ours > 0

    @property
    def same(self) -> bool:
        return (self.theirs > 0) is self.calls


def decision_token(tokenizer: Tokenizer, answer: Answer) -> int | None:
    """Which token of a reply decides whether it calls; None where it has no answer."""
    reply, text = answer.reply, answer.text
    if reply.unfinished:
        return None
    content = answer.ids[:-1] if answer.finished else answer.ids
    begin = len(text) - len(text[reply.answer_start :].lstrip())
    if begin == len(text):
        return len(content) if answer.finished else None

    def length(count: int) -> int:
        """Characters of the first tokens, without one that is not whole yet."""
        return len(tokenizer.decode(content[:count]).rstrip("\N{REPLACEMENT CHARACTER}"))

    reached = bisect_left(range(len(content) + 1), begin, key=length)
    return reached if length(reached) == begin else reached - 1  # white space in the same token


def decision_margin(reference: Reference, index: int, reply: Scored) -> float | None:
    """The log-odds of a call in conversation `index`; None where there is nothing to decide.

    `reply` is one model along the reference's reply.
    """
    token = watched_ids(reference)
    if not (token and reference.conversations[index].tools):
        return None
    row = decision_token(reference.tokenizer, reference.answers[index])
    if row is None:
        return None
    margin = float(trigger_margin(reply.part(slice(row, row + 1)), token[0])[0])
    return None if np.isnan(margin) else margin


def check_trigger(
    reference: Reference, asked: Thresholds, pairs: Pairs, noise: Mapping[str, Number]
) -> Outcome:
    """Whether a greedy decoder would call where the reference calls, and only there.

    `noise` are the numbers of the reference's own decisions when it is asked again.
    """
    found = [
        _Decision(index, ours, theirs)
        for index, scored, other in pairs
        if (ours := decision_margin(reference, index, scored)) is not None
        and (theirs := decision_margin(reference, index, other)) is not None
    ]
    floor = asked.same_trigger
    same = count([one.same for one in found])
    kept_calls = count([one.same for one in found if one.calls])
    kept_none = count([one.same for one in found if not one.calls])
    more = more_needed(kept_calls.total, same.total, 1 - floor)
    state = _decide(same, (kept_calls, kept_none), floor, more)
    reason = _reason(state, same, (kept_calls, kept_none), floor, more)
    tag = len(reference.tokenizer.encode(OPEN))
    if tag > 1:
        reason += f"; judged by the first of the {tag} tokens that {OPEN} is"
    numbers = {**_numbers(reference, found, same, floor), **_turned("off", kept_calls),
               **_turned("on", kept_none), **noise}  # fmt: skip
    names = [reference.conversations[one.index].id for one in found]
    findings = tuple(
        Finding(name, f"margin {one.ours:+.2f} became {one.theirs:+.2f} nats")
        for name, one in zip(names, found, strict=True)
        if not one.same
    )
    points = tuple(
        Point(name, {"reference": finite(one.ours), "artifact": finite(one.theirs)})
        for name, one in zip(names, found, strict=True)
    )
    return Outcome(NAME, Verdict(state, reason, numbers), findings[:FINDINGS_SHOWN], points)


def _decide(same: Rate, kept: tuple[Rate, Rate], floor: float, more: int) -> State:
    states = {same.decide(floor), *(State.FAIL for k in kept if k.decide(floor) is State.FAIL)}
    if State.FAIL in states:
        return State.FAIL
    return State.NOT_ENOUGH_EVIDENCE if more else same.decide(floor)


def _reason(state: State, same: Rate, kept: tuple[Rate, Rate], floor: float, more: int) -> str:
    calls, none = kept
    if not same.total:
        return (
            "no conversation with tools where the decision to call could be compared:"
            f" {say_needed(same.needed(floor), 0)}"
        )
    shown = (
        f"same decision to call {same.hits} of {same.total}; turned off"
        f" {calls.total - calls.hits} of {calls.total} calls, turned on"
        f" {none.total - none.hits} of {none.total} without one; floor {floor:.2f}"
    )
    if state is not State.NOT_ENOUGH_EVIDENCE:
        return shown
    if more:
        return (
            f"{shown}: the reference calls too seldom for lost calls to show; about {more} more"
            " prompts at which it calls are needed"
        )
    return f"{shown}: {say_needed(same.needed(floor), same.total)}"


def _numbers(
    reference: Reference, found: Sequence[_Decision], same: Rate, floor: float
) -> dict[str, Number]:
    low, high = same.interval
    shift = mean_by_prompt(
        [np.array([one.theirs - one.ours]) for one in found],
        [reference.conversations[one.index].first_id for one in found],
    )
    return {
        "same": same.hits, "with_tools": same.total, "same_low": low, "same_high": high,
        "floor": floor, "prompts_needed": same.needed(floor),
        "calls": sum(one.calls for one in found),
        **shift.numbers("shift"),
        "shift_tokens": shift.values, "shift_prompts": shift.prompts,
        "smallest_margin": min((abs(one.ours) for one in found), default=None),
    }  # fmt: skip


def _turned(way: str, kept: Rate) -> dict[str, Number]:
    turned = Rate(kept.total - kept.hits, kept.total)
    low, high = turned.interval
    name = f"calls_turned_{way}"
    return {
        name: turned.hits, f"{name}_of": turned.total, f"{name}_rate": turned.value,
        f"{name}_low": low, f"{name}_high": high,
    }  # fmt: skip
