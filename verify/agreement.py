"""Agreement: does the artifact answer as its reference does, tool calls first?

In: the answers of both to the same prompts. Out: an Outcome with two rates and their intervals:

    same_calls   of the conversations with tools, those where both make the same calls, or none
    same_text    of all conversations, those with the same reply, token for token

Right and wrong do not enter here: an artifact that repeats its reference's mistakes is a faithful
one. The gate is on `same_calls`, because that is what a release must not change, and it is a coarse
one: it asks whether an artifact is plainly broken. The 95 % Wilson interval must lie above the
gate's floor: pass if its lower end does, fail if even its upper end is below, else not enough
evidence. With no disagreement at all, 35 conversations with tools are needed to reach 0.90.
"""

from __future__ import annotations

from collections.abc import Iterator

from convert.conversation import Conversation
from verify.check import Finding, Number, Outcome, State, Verdict
from verify.evidence import Answer, Evidence
from verify.statistics import Rate, count
from verify.tool_calls import compare_calls

NAME = "agreement"
FINDINGS_SHOWN = 20
_PREVIEW = 200


def check_agreement(evidence: Evidence, /) -> Outcome:
    """Compare the answers of the artifact with the reference's."""
    assert evidence.answers is not None
    reference = evidence.reference
    pairs = list(zip(reference.answers, evidence.answers, strict=True))
    tools = [bool(conversation.tools) for conversation in reference.conversations]
    calls = count(
        [same_calls(*pair) for pair, has_tools in zip(pairs, tools, strict=True) if has_tools]
    )
    text = count([same_text(*pair) for pair in pairs])
    floor = evidence.thresholds.same_calls
    state = calls.decide(floor)
    verdict = Verdict(state, _reason(state, calls, floor), _numbers(calls, text, floor))
    findings = list(_differences(reference.conversations, pairs))
    return Outcome(NAME, verdict, tuple(findings[:FINDINGS_SHOWN]))


def same_calls(ours: Answer, theirs: Answer) -> bool:
    """Whether two answers make the same calls, and write them equally well."""
    a, b = ours.reply, theirs.reply
    return (
        compare_calls(a.calls, b.calls)
        and compare_calls(a.recovered, b.recovered)
        and bool(a.malformed) == bool(b.malformed)
    )


def same_text(ours: Answer, theirs: Answer) -> bool:
    """Whether two answers are the same tokens."""
    return ours.ids == theirs.ids


def _reason(state: State, calls: Rate, floor: float) -> str:
    low, high = calls.interval
    shown = f"same calls {calls.hits} of {calls.total}, 95 % interval {low:.3f} to {high:.3f}"
    if not calls.total:
        return "no conversation with tools in the suite"
    if state is State.NOT_ENOUGH_EVIDENCE:
        return f"{shown}, which holds the floor {floor:.2f}: more prompts are needed"
    return f"{shown}; floor {floor:.2f}"


def _numbers(calls: Rate, text: Rate, floor: float) -> dict[str, Number]:
    low, high = calls.interval
    text_low, text_high = text.interval
    return {
        "same_calls": calls.hits,
        "with_tools": calls.total,
        "same_calls_rate": calls.value,
        "same_calls_low": low,
        "same_calls_high": high,
        "floor": floor,
        "same_text": text.hits,
        "conversations": text.total,
        "same_text_rate": text.value,
        "same_text_low": text_low,
        "same_text_high": text_high,
    }


def _differences(
    conversations: tuple[Conversation, ...], pairs: list[tuple[Answer, Answer]]
) -> Iterator[Finding]:
    """Different calls first, then replies that differ in text alone."""
    listed = list(zip(conversations, pairs, strict=True))
    for other_calls in (True, False):
        for conversation, (ours, theirs) in listed:
            calls_differ = bool(conversation.tools) and not same_calls(ours, theirs)
            if same_text(ours, theirs) or calls_differ is not other_calls:
                continue
            what = "calls" if calls_differ else "text"
            yield Finding(
                conversation.id,
                f"{what} differ: reference {ours.text[:_PREVIEW]!r},"
                f" artifact {theirs.text[:_PREVIEW]!r}",
            )
