"""Behaviour: is the artifact right as often as its reference, kind by kind, on the same prompts?

In: the answers of both. Out: one Outcome a row of `MEASURES`, each a check by itself:

    tool_calls         calls are due: these are made and no others, equal in the gate's tier
    bfcl               the same by BFCL's looser rules, on its prompts only (`bfcl_scoring.py`)
    lost_calls         calls are due: something is called, not a sentence or a refusal in its place
    spurious_calls     no call is due although there are tools: none is made
    malformed_calls    tools are on offer: nothing is written that is almost a call
    schema_valid       the reference calls: no call is made that its function's schema refuses
    json_mode          JSON is due: the reply is one JSON value, valid for its schema
    wrong_refusals     nothing says that a refusal is due: none comes
    missing_refusals   a refusal is due: it comes

Every row yields right or wrong for each prompt it applies to and each of the two models. Prompts
that flip are what decides (`statistics.Flips`): the largest plausible drop must stay below the
margin that the gate has for this check and type. Where few prompts apply that cannot be shown; the
verdict is then "not enough evidence" and says how many it takes. A row with no prompt at all is not
an Outcome; `not_measured` names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from convert.conversation import Conversation
from quantize.abliteration.refusals import looks_like_refusal
from verify.bootstrap import mean_by_prompt
from verify.call_outcomes import (
    LOST,
    CallOutcome,
    arguments_kept,
    call_outcome,
    calls_due,
    is_right,
)
from verify.call_schemas import are_schemas, are_valid
from verify.check import Finding, Number, Outcome, State, Verdict
from verify.equality import Due, Tier
from verify.evidence import Answer, Evidence
from verify.scoring import is_valid_json, score
from verify.statistics import Flips, count_flips

FINDINGS_SHOWN = 20
_PREVIEW = 200


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, what the reference answers to it, and how equal the gate wants calls to be."""

    conversation: Conversation
    ours: Answer
    equality: Tier

    @property
    def due(self) -> Due | None:
        """The calls a right reply makes; None where none can be made."""
        return calls_due(self.conversation, self.ours)

    def outcome(self, due: Due, answer: Answer) -> CallOutcome:
        """What became of the calls of `answer`."""
        return call_outcome(due, answer, self.conversation.tools)


Judge = Callable[[Asked, Answer], bool | None]
"""From what was asked and the answer to judge to right, wrong or None: does not apply. Whether it
applies must not depend on the answer to judge."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One row: the check's name, what is counted in words, and the judge."""

    name: str
    right: str
    judge: Judge
    margin: str = ""
    of_a_benchmark: bool = False

    @property
    def drop(self) -> str:
        """The margin of the gate that it is held to: its own unless another is named."""
        return self.margin or self.name


def _makes_the_calls(asked: Asked, answer: Answer) -> bool | None:
    due = asked.due
    return is_right(asked.outcome(due, answer), asked.equality) if due else None


def _right_by_bfcl(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    return score(expected, answer).get("bfcl") if expected else None


def _calls_at_all(asked: Asked, answer: Answer) -> bool | None:
    due = asked.due
    return asked.outcome(due, answer) not in LOST if due else None


def _calls_nothing(asked: Asked, answer: Answer) -> bool | None:
    due = asked.due
    if due is None or due:
        return None
    return not (answer.reply.calls or answer.reply.recovered)


def _writes_calls_well(asked: Asked, answer: Answer) -> bool | None:
    return not answer.reply.malformed if asked.conversation.tools else None


def _keeps_to_schemas(asked: Asked, answer: Answer) -> bool | None:
    tools = asked.conversation.tools
    if not (tools and asked.ours.reply.calls and are_schemas(tools)):
        return None
    return are_valid(answer.reply.calls, tools)


def _writes_json(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is None or expected.json is None:
        return None
    return is_valid_json(answer.reply.text, expected.json.schema)


def _does_not_refuse(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is not None and expected.refusal:
        return None
    return not looks_like_refusal(answer.reply.text)


def _refuses(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is None or not expected.refusal:
        return None
    return looks_like_refusal(answer.reply.text)


MEASURES = (
    Measure("tool_calls", "exact calls", _makes_the_calls),
    Measure("bfcl", "right by BFCL's rules", _right_by_bfcl, "tool_calls", of_a_benchmark=True),
    Measure("lost_calls", "calls made where calls are due", _calls_at_all),
    Measure("spurious_calls", "no call where none is due", _calls_nothing),
    Measure("malformed_calls", "nothing malformed", _writes_calls_well),
    Measure("schema_valid", "nothing invalid for its schema", _keeps_to_schemas, "malformed_calls"),
    Measure("json_mode", "valid JSON", _writes_json),
    Measure("wrong_refusals", "no refusal where none is due", _does_not_refuse),
    Measure("missing_refusals", "a refusal where one is due", _refuses),
)


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
    state = flips.decide(margin)
    right = sum(first for first, *_ in judged), sum(second for _, second, *_ in judged)
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
        "prompts_needed": flips.needed(margin),
    }


def _argument_numbers(evidence: Evidence) -> dict[str, Number]:
    """The mean share of arguments kept where the reference calls, resampled by prompt."""
    assert evidence.answers is not None
    shares = [
        np.array([share])
        for ours, theirs in zip(evidence.reference.answers, evidence.answers, strict=True)
        if (share := arguments_kept(ours, theirs)) is not None
    ]
    return {**mean_by_prompt(shares).numbers("arguments_kept")}


def _reason(
    measure: Measure, state: State, flips: Flips, right: tuple[int, int], margin: float
) -> str:
    low, high = flips.interval
    shown = (
        f"{measure.right}: {right[1]} of {flips.total}, reference {right[0]};"
        f" drop {_points(flips.drop)} points ({_points(low)} to {_points(high)})"
    )
    if state is State.NOT_ENOUGH_EVIDENCE:
        needed = max(flips.needed(margin), flips.total + 1)
        return f"{shown}, margin {_points(margin)}: about {needed} prompts needed"
    return f"{shown}; margin {_points(margin)}"


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
