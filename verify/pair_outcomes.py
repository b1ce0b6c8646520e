"""One word for a pair of replies: what the artifact did with the reference's, right or wrong.

In: the answers of both, and the tier in which a gate calls calls equal. Out: a `PairOutcome`.
`call_outcomes.py` says of one reply what became of the calls that were *due*, so two replies that
are wrong in different ways can share a word there. Here nothing is due: the reference's reply is
what is compared with.

    identical            the same tokens
    same call            the same calls, otherwise written or with another text beside them
    other text           no call in either, and another text
    different arguments  the same functions equally often, with another value somewhere
    different tool       as many calls, another function among them
    other count          more or fewer calls
    lost call            the reference calls, the artifact does not
    new call             the artifact calls, the reference does not
    malformed            a call is written with a flaw, in one of the two or in both but differently
    no answer            reasoning without an end, in one of the two or in both but differently

The first three are a faithful reply (`FAITHFUL`): they are the pairs with tools that the check
`agreement` counts as the same calls. Where one reply calls and the other's reasoning never ends,
the call is lost, or new. Every pair of a suite has a word, those without tools too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from convert.conversation import Conversation
from verify.equality import Tier, Tools, tier_of_replies, within
from verify.evidence import Answer


class PairOutcome(StrEnum):
    """What became of one reply of the reference."""

    IDENTICAL = "identical"
    SAME_CALL = "same call"
    OTHER_TEXT = "other text"
    ARGUMENTS = "different arguments"
    TOOL = "different tool"
    COUNT = "other count"
    LOST = "lost call"
    NEW = "new call"
    MALFORMED = "malformed"
    NO_ANSWER = "no answer"


FAITHFUL = (PairOutcome.IDENTICAL, PairOutcome.SAME_CALL, PairOutcome.OTHER_TEXT)


def same_text(ours: Answer, theirs: Answer) -> bool:
    """Whether two answers are the same tokens."""
    return ours.ids == theirs.ids


def pair_outcome(ours: Answer, theirs: Answer, tools: Tools, equality: Tier) -> PairOutcome:
    """The word for two answers to one prompt."""
    if same_text(ours, theirs):
        return PairOutcome.IDENTICAL
    first, second = ours.reply, theirs.reply
    if within(tier_of_replies(first, second, tools), equality):
        return PairOutcome.SAME_CALL if second.blocks else PairOutcome.OTHER_TEXT
    if first.unfinished or second.unfinished:
        if first.calls and not first.malformed:
            return PairOutcome.LOST
        return PairOutcome.NEW if second.calls and not second.malformed else PairOutcome.NO_ANSWER
    if first.malformed or second.malformed:
        return PairOutcome.MALFORMED
    if not second.calls:
        return PairOutcome.LOST
    if not first.calls:
        return PairOutcome.NEW
    if len(first.calls) != len(second.calls):
        return PairOutcome.COUNT
    names = [Counter(call.name for call in reply.calls) for reply in (first, second)]
    return PairOutcome.ARGUMENTS if names[0] == names[1] else PairOutcome.TOOL


def count_pairs(
    conversations: Sequence[Conversation], pairs: Sequence[tuple[Answer, Answer]], equality: Tier
) -> dict[str, int]:
    """How often each word occurs, every word in the order above; of no pairs there is nothing."""
    if not pairs:
        return {}
    found = Counter(
        pair_outcome(ours, theirs, conversation.tools, equality)
        for conversation, (ours, theirs) in zip(conversations, pairs, strict=True)
    )
    return {word.value: found[word] for word in PairOutcome}
