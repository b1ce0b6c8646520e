"""Behaviour: is the artifact right as often as its reference, kind by kind, on the same prompts?

In: the answers of both. Out: one Outcome a row of `measures.py`, each a check by itself.

Every row yields right or wrong for each prompt it applies to and each of the two models. Prompts
that flip are what decides (`statistics.Flips`): the largest plausible drop must stay below the
margin that the gate has for this check and type. Where few prompts apply that cannot be shown; the
verdict is then "not enough evidence" and says how many it takes. So it is where the reference is
right in no more of them than the margin: everything it can do may be lost, and no drop would show.
A row with no prompt at all is not an Outcome; `not_measured` names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from convert.conversation import Conversation
from verify.bootstrap import mean_by_prompt
from verify.call_outcomes import arguments_kept
from verify.check import Finding, Number, Outcome, State, Verdict
from verify.evidence import Answer, Evidence
from verify.measures import MEASURES, Asked, Measure
from verify.statistics import Flips, count_flips, more_needed, say_needed

FINDINGS_SHOWN = 20
_PREVIEW = 200


def check_behaviour(evidence: Evidence, /) -> list[Outcome]:
    """An outcome for every measure that applies to a prompt of the suite."""
    outcomes = (check_measure(evidence, measure) for measure in MEASURES)
    return [outcome for outcome in outcomes if outcome is not None]


def not_measured(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Measures for which the suite has no prompt, given the outcomes of those that it has."""
    made = {outcome.check for outcome in outcomes}
    return tuple(m.name for m in MEASURES if m.name not in made and not m.of_a_benchmark)


def check_measure(evidence: Evidence, measure: Measure) -> Outcome | None:
    """One measure; None if it applies to no prompt."""
    judged = list(_judged(evidence, measure))
    if not judged:
        return None
    flips = count_flips([(first, second) for first, second, *_ in judged])
    margin = float(getattr(evidence.thresholds.drops, measure.drop))
    right = sum(first for first, *_ in judged), sum(second for _, second, *_ in judged)
    state = flips.decide(margin)
    if state is State.PASS and more_needed(right[0], flips.total, margin):
        state = State.NOT_ENOUGH_EVIDENCE
    numbers = _numbers(flips, right, margin)
    if measure.name == "tool_calls":
        numbers |= _argument_numbers(evidence) | {"equality": evidence.thresholds.equality}
    reason = _reason(measure, state, flips, right, margin)
    if measure.name == "tool_calls":
        reason += f"; arguments equal by tier {evidence.thresholds.equality}"
    findings = tuple(_findings(judged))[:FINDINGS_SHOWN]
    return Outcome(measure.name, Verdict(state, reason, numbers), findings)


_Judged = tuple[bool, bool, Conversation, Answer, Answer]


def _judged(evidence: Evidence, measure: Measure) -> Iterator[_Judged]:
    """(reference right, artifact right, conversation, both answers) where the measure applies."""
    assert evidence.answers is not None
    reference = evidence.reference
    for conversation, ours, theirs in zip(
        reference.conversations, reference.answers, evidence.answers, strict=True
    ):
        asked = Asked(conversation, ours, evidence.thresholds.tier)
        first, second = measure.judge(asked, ours), measure.judge(asked, theirs)
        if first is not None and second is not None:
            yield first, second, conversation, ours, theirs


def _numbers(flips: Flips, right: tuple[int, int], margin: float) -> dict[str, Number]:
    low, high = flips.interval
    more = more_needed(right[0], flips.total, margin)
    return {
        "prompts": flips.total,
        "reference_right": right[0],
        "artifact_right": right[1],
        "worse": flips.worse,
        "better": flips.better,
        "drop": flips.drop,
        "drop_low": low,
        "drop_high": high,
        "margin": margin,
        "mcnemar_p": flips.p_value,
        "prompts_needed": max(flips.needed(margin), flips.total + more if more else 0),
    }


def _argument_numbers(evidence: Evidence) -> dict[str, Number]:
    """The mean share of arguments kept where the reference calls, resampled by conversation."""
    assert evidence.answers is not None
    reference = evidence.reference
    shares = [
        (conversation.first_id, np.array([share]))
        for conversation, ours, theirs in zip(
            reference.conversations, reference.answers, evidence.answers, strict=True
        )
        if (share := arguments_kept(ours, theirs)) is not None
    ]
    mean = mean_by_prompt([kept for _, kept in shares], [name for name, _ in shares])
    return {**mean.numbers("arguments_kept")}


def _reason(
    measure: Measure, state: State, flips: Flips, right: tuple[int, int], margin: float
) -> str:
    low, high = flips.interval
    shown = (
        f"{measure.right}: {right[1]} of {flips.total}, reference {right[0]};"
        f" drop {_points(flips.drop)} points ({_points(low)} to {_points(high)})"
    )
    if state is not State.NOT_ENOUGH_EVIDENCE:
        return f"{shown}; margin {_points(margin)}"
    more = more_needed(right[0], flips.total, margin)
    if more:
        return (
            f"{shown}, margin {_points(margin)}: the reference is right too seldom for a loss to"
            f" show; about {more} more prompts that it gets right are needed"
        )
    needed = flips.needed(margin)
    return f"{shown}, margin {_points(margin)}: {say_needed(needed, flips.total)}"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}".replace("-0.0", "0.0")


def _findings(judged: Sequence[_Judged]) -> Iterator[Finding]:
    """Prompts that got worse, with both replies."""
    for first, second, conversation, ours, theirs in judged:
        if first and not second:
            yield Finding(
                conversation.id,
                f"reference {ours.text[:_PREVIEW]!r}, artifact {theirs.text[:_PREVIEW]!r}",
            )
