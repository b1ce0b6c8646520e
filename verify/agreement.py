"""Agreement: does the artifact answer as its reference does, tool calls first?

In: the answers of both to the same prompts. Out: an Outcome with two rates and their intervals:

    same_calls   of the conversations with tools, those where both make the same calls, or none
    same_text    of all conversations, those with the same reply, token for token

Two sets of calls are the same in the tier that the gate names (`equality`, json unless it says
otherwise; `equality.py`). Of the replies in which the reference writes a call, the points count the
strictest tier in which the artifact's are equal: byte, json, numeric, schema default, bfcl, none.

Right and wrong do not enter here: an artifact that repeats its reference's mistakes is a faithful
one. The gate is on `same_calls`, because that is what a release must not change, and it is a coarse
one: it asks whether an artifact is plainly broken. The 95 % Wilson interval must lie above the
gate's floor: pass if its lower end does, fail if even its upper end is below, else not enough
evidence. With no disagreement at all, 35 conversations with tools are needed to reach 0.90.

A reply of the reference that was cut off at the limit of tokens has not said yet what it calls, and
one of the artifact's that is the same so far shows nothing. Such pairs do not count towards a pass:
the floor must be reached without them. Beside the rate stands the reference's own, alone and in 16
bits, on the few conversations that it answers again (`asked_again.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convert.conversation import Conversation
from verify.asked_again import answers_again
from verify.check import Finding, Number, Outcome, Point, State, Verdict
from verify.equality import Tier, tier_of_replies, within
from verify.evidence import Answer, Evidence
from verify.gate import Thresholds
from verify.pair_outcomes import same_text
from verify.statistics import Rate, count, say_needed

NAME = "agreement"
FINDINGS_SHOWN = 20
_PREVIEW = 200


def check_agreement(evidence: Evidence, /) -> Outcome:
    """Compare the answers of the artifact with the reference's."""
    assert evidence.answers is not None
    asked = evidence.thresholds
    pairs = [
        _Pair(
            conversation,
            ours,
            theirs,
            tier_of_replies(ours.reply, theirs.reply, conversation.tools),
        )
        for conversation, ours, theirs in zip(
            evidence.reference.conversations,
            evidence.reference.answers,
            evidence.answers,
            strict=True,
        )
    ]
    with_tools = [pair for pair in pairs if pair.conversation.tools]
    calls = count([pair.same_calls(asked.tier) for pair in with_tools])
    shown = count([pair.same_calls(asked.tier) and pair.ours.finished for pair in with_tools])
    text = count([same_text(pair.ours, pair.theirs) for pair in pairs])
    state = calls.decide(asked.same_calls)
    if state is State.PASS and shown.decide(asked.same_calls) is not State.PASS:
        state = State.NOT_ENOUGH_EVIDENCE
    numbers = _numbers(calls, shown, text, asked.same_calls) | {"equality": asked.tier.value}
    again = answers_again(evidence.reference, asked.tier)
    numbers |= again.numbers() if again else {}
    reason = _reason(state, calls, shown, asked)
    if again:
        reason += f"; the reference makes its own again in {again}"
    verdict = Verdict(state, reason, numbers)
    findings = list(_differences(pairs, asked.tier))
    return Outcome(NAME, verdict, tuple(findings[:FINDINGS_SHOWN]), _by_tier(pairs))


@dataclass(frozen=True, slots=True)
class _Pair:
    """One conversation, both answers, and the strictest tier in which both make the same calls."""

    conversation: Conversation
    ours: Answer
    theirs: Answer
    tier: Tier | None

    def same_calls(self, equality: Tier) -> bool:
        """Whether both make the same calls, and write them equally well."""
        return within(self.tier, equality)


def _by_tier(pairs: Sequence[_Pair]) -> tuple[Point, ...]:
    """Replies by the tier in which calls are equal, where the reference writes any."""
    found = Counter(p.tier for p in pairs if p.conversation.tools and p.ours.reply.blocks)
    return tuple(Point(tier or "none", {"replies": found[tier]}) for tier in (*Tier, None))


def _reason(state: State, calls: Rate, shown: Rate, asked: Thresholds) -> str:
    low, high = calls.interval
    floor = asked.same_calls
    text = (
        f"same calls ({asked.tier}) {calls.hits} of {calls.total},"
        f" 95 % interval {low:.3f} to {high:.3f}"
    )
    if not calls.total:
        return (
            "no conversation with tools in the suite:"
            f" {say_needed(calls.needed(floor), calls.total)}"
        )
    if state is not State.NOT_ENOUGH_EVIDENCE:
        return f"{text}; floor {floor:.2f}"
    if calls.decide(floor) is State.PASS:
        return (
            f"{text}; floor {floor:.2f}, but in {calls.hits - shown.hits} of them the reference's"
            " reply is cut off before it ends: longer replies are needed (max_new_tokens)"
        )
    needed = say_needed(calls.needed(floor), calls.total)
    return f"{text}, which holds the floor {floor:.2f}: {needed}"


def _numbers(calls: Rate, shown: Rate, text: Rate, floor: float) -> dict[str, Number]:
    low, high = calls.interval
    text_low, text_high = text.interval
    return {
        "same_calls": calls.hits,
        "with_tools": calls.total,
        "same_calls_rate": calls.value,
        "same_calls_low": low,
        "same_calls_high": high,
        "floor": floor,
        "prompts_needed": calls.needed(floor),
        "same_calls_cut_off": calls.hits - shown.hits,
        "same_text": text.hits,
        "conversations": text.total,
        "same_text_rate": text.value,
        "same_text_low": text_low,
        "same_text_high": text_high,
    }


def _differences(pairs: Sequence[_Pair], equality: Tier) -> Iterator[Finding]:
    """Different calls first, then replies that differ in text alone."""
    for other_calls in (True, False):
        for pair in pairs:
            tools = bool(pair.conversation.tools)
            calls_differ = tools and not pair.same_calls(equality)
            if same_text(pair.ours, pair.theirs) or calls_differ is not other_calls:
                continue
            what = "calls differ" if calls_differ else "text differs"
            if tools and pair.ours.reply.blocks and pair.tier is not None:
                what += f", equal by tier {pair.tier}"
            yield Finding(
                pair.conversation.id,
                f"{what}: reference {pair.ours.text[:_PREVIEW]!r},"
                f" artifact {pair.theirs.text[:_PREVIEW]!r}",
            )
