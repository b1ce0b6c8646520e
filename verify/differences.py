"""Prompts to which two models gave different replies, both replies whole, the worst first.

In: conversations and the answers of both. Out: `Difference` values in the order in which a person
wants to read them: other calls first, then other text; within each as in the suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convert.conversation import Conversation
from verify.call_outcomes import call_outcome, calls_due
from verify.equality import Tier, tier_of_replies, within
from verify.evidence import Answer
from verify.pair_outcomes import pair_outcome, same_text


@dataclass(frozen=True, slots=True)
class Difference:
    """One prompt; `asked` is its last message, outcomes are empty where no call can be made.

    `equal` is the strictest tier in which both make the same calls, empty if there is none or
    nothing to compare; `pair` the word for what the artifact made of the reference's reply.
    """

    id: str
    tags: tuple[str, ...]
    asked: str
    reference: str
    artifact: str
    calls_differ: bool
    reference_outcome: str
    artifact_outcome: str
    equal: str = ""
    pair: str = ""


def differences(
    conversations: Sequence[Conversation],
    pairs: Sequence[tuple[Answer, Answer]],
    equality: Tier = Tier.JSON,
) -> list[Difference]:
    """Every prompt with another reply, token for token; `equality` says which calls are equal."""
    found = [
        _difference(conversation, ours, theirs, equality)
        for conversation, (ours, theirs) in zip(conversations, pairs, strict=True)
        if not same_text(ours, theirs)
    ]
    return sorted(found, key=lambda difference: not difference.calls_differ)


def _difference(
    conversation: Conversation, ours: Answer, theirs: Answer, equality: Tier
) -> Difference:
    due, tools = calls_due(conversation, ours), conversation.tools
    tier = tier_of_replies(ours.reply, theirs.reply, tools) if tools else None
    return Difference(
        id=conversation.id,
        tags=conversation.tags,
        asked=str(conversation.messages[-1].get("content") or ""),
        reference=ours.text,
        artifact=theirs.text,
        calls_differ=bool(tools) and not within(tier, equality),
        reference_outcome="" if due is None else call_outcome(due, ours, tools).value,
        artifact_outcome="" if due is None else call_outcome(due, theirs, tools).value,
        equal=tier.value if tier is not None and ours.reply.blocks else "",
        pair=pair_outcome(ours, theirs, tools, equality).value,
    )
