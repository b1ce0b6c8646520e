"""What became of a reply's calls: one word a reply, and the table of the reference's words against
the artifact's.

In: the calls that are due and an `Answer`. Out: a `CallOutcome`. Due is what the conversation
expects; where it states nothing, what the reference does. With calls due:

    exact call            these calls and no others, written without a flaw, equal as JSON
    equal as numbers      the same where 1, 1.0 and 1e0 are one number
    equal with defaults   the same where an argument left out has its schema's default
    equal by BFCL         the same by the leaderboard's rules only
    other arguments       the right functions, equally often, with another value somewhere
    other function        as many calls, another function among them
    other count           more or fewer calls
    malformed             any flaw in writing a call, whether or not it can be recovered
    unfinished reasoning  reasoning that is not closed: there is no answer
    refusal               no call, and the reply opens as refusals do
    no call               no call

The first four are the tiers of `equality.py`; which of them is right, the gate says. With none due,
a call is a *spurious call*, a flawed one is malformed, and the others keep their words. A refusal
in place of a call is a lost call like any other, and so is reasoning without an end, whatever
stands in it. What an artifact's reply is beside its reference's, due or not, `pair_outcomes.py`
says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from convert.conversation import Conversation, ToolCall
from quantize.abliteration.refusals import looks_like_refusal
from verify.equality import Due, Tier, Tools, tier_of_calls, within
from verify.evidence import Answer
from verify.tool_calls import canonical_json


class CallOutcome(StrEnum):
    """What became of the calls of one reply."""

    EXACT = "exact call"
    EQUAL_NUMBERS = "equal as numbers"
    EQUAL_DEFAULTS = "equal with defaults"
    EQUAL_BFCL = "equal by BFCL"
    ARGUMENTS = "other arguments"
    FUNCTION = "other function"
    COUNT = "other count"
    MALFORMED = "malformed"
    UNFINISHED = "unfinished reasoning"
    REFUSAL = "refusal"
    NO_CALL = "no call"
    SPURIOUS = "spurious call"


LOST = (CallOutcome.REFUSAL, CallOutcome.NO_CALL, CallOutcome.UNFINISHED)
_AT_TIER = {
    Tier.JSON: CallOutcome.EXACT,
    Tier.NUMERIC: CallOutcome.EQUAL_NUMBERS,
    Tier.DEFAULT: CallOutcome.EQUAL_DEFAULTS,
    Tier.BFCL: CallOutcome.EQUAL_BFCL,
}


def calls_due(conversation: Conversation, reference: Answer) -> Due | None:
    """The calls a right reply makes; None for a conversation in which none can be made."""
    if not conversation.tools:
        return None
    expected = conversation.expected
    if expected is not None and expected.calls is not None:
        return expected.calls
    if expected is not None and expected.accepted is not None:
        return expected.accepted
    return reference.reply.calls


def call_outcome(due: Due, answer: Answer, tools: Tools = ()) -> CallOutcome:
    """The word for `answer` where the calls `due` were to be made of the functions `tools`."""
    reply = answer.reply
    if reply.unfinished:
        return CallOutcome.UNFINISHED
    if reply.malformed:
        return CallOutcome.MALFORMED
    if not reply.calls:
        refused = looks_like_refusal(reply.text)
        return CallOutcome.REFUSAL if refused else CallOutcome.NO_CALL
    if not due:
        return CallOutcome.SPURIOUS
    tier = tier_of_calls(due, reply.calls, tools)
    if tier is not None:
        return _AT_TIER[tier]
    if len(due) != len(reply.calls):
        return CallOutcome.COUNT
    names = Counter(call.name for call in due) == Counter(call.name for call in reply.calls)
    return CallOutcome.ARGUMENTS if names else CallOutcome.FUNCTION


def is_right(outcome: CallOutcome, equality: Tier) -> bool:
    """Whether a reply made the calls that were due, in the tier that a gate asks for."""
    return any(word is outcome and within(tier, equality) for tier, word in _AT_TIER.items())


def confusion(
    conversations: Sequence[Conversation], pairs: Sequence[tuple[Answer, Answer]]
) -> dict[str, dict[str, int]]:
    """How often each word of the reference met each word of the artifact: {reference: {artifact}}.

    Conversations without tools are left out.
    """
    table: dict[str, dict[str, int]] = {}
    for conversation, (ours, theirs) in zip(conversations, pairs, strict=True):
        due = calls_due(conversation, ours)
        if due is not None:
            row = table.setdefault(call_outcome(due, ours, conversation.tools).value, {})
            word = call_outcome(due, theirs, conversation.tools).value
            row[word] = row.get(word, 0) + 1
    return table


def arguments_kept(ours: Answer, theirs: Answer) -> float | None:
    """The share of the reference's arguments that the artifact repeats; None without a call.

    Calls of one function are paired so that most arguments are kept, in whatever order they stand;
    an argument counts if its value is equal as JSON. A call without arguments counts as one, so
    that losing it shows.
    """
    calls, others = ours.reply.calls, theirs.reply.calls
    if not calls:
        return None
    kept = sum(_most_kept(name, calls, others) for name in {call.name for call in calls})
    return kept / sum(max(len(call.arguments), 1) for call in calls)


def _most_kept(name: str, ours: Sequence[ToolCall], theirs: Sequence[ToolCall]) -> int:
    """Arguments kept in all calls of one function, at best."""
    from scipy.optimize import linear_sum_assignment  # half a second to import

    first, second = ([call for call in calls if call.name == name] for calls in (ours, theirs))
    kept = np.array([[_kept(one, other) for other in second] for one in first], dtype=np.int64)
    return int(kept[linear_sum_assignment(kept, maximize=True)].sum())


def _kept(ours: ToolCall, theirs: ToolCall) -> int:
    if not ours.arguments:
        return 1
    return sum(
        key in theirs.arguments and canonical_json(theirs.arguments[key]) == canonical_json(value)
        for key, value in ours.arguments.items()
    )
