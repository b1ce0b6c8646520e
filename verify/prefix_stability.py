"""Prefix stability: is a turn's prompt, with the reply after it, the beginning of the next prompt?

In: the reference, answered or not, and which of its conversations to look at. Out: a `Stability`.

The one fact to know: a server keeps what it has computed of a conversation only as far as the next
prompt repeats it, id for id, and a model sees its own reply again only as the template writes it.
The published tool_use template ends a tool's turn otherwise when it is the last one, so from there
on every turn is computed anew. This is a property of the template, not of an artifact: an artifact
whose prompts are the reference's has it exactly as much, so it is told with numbers and fails
nothing. Replies are dropped on purpose by templates of models that reason.

Looked at are recorded histories (the prompt before the last message of the assistant, the reply as
the template writes it) and later turns, whose earlier prompt and reply are known as ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from convert.conversation import Conversation
from convert.errors import ConversationError
from convert.rendering import render
from verify.check import Finding
from verify.engines import Ids
from verify.evidence import Reference


@dataclass(frozen=True, slots=True)
class Stability:
    """Earlier prompts looked at and those that the next one repeats; the same with their replies.

    Replies are counted only where the reference made them. `example` is the first prompt that is
    not repeated, or, if all are, the first reply.
    """

    turns: int
    prompts_kept: int
    replies: int
    replies_kept: int
    example: Finding | None


def measure_stability(reference: Reference, chosen: Iterable[int]) -> Stability:
    """Every chosen conversation that has a turn before its last prompt."""
    places = {conversation.id: i for i, conversation in enumerate(reference.conversations)}
    prompts, replies = [], []
    for i in chosen:
        conversation, later = reference.conversations[i], reference.prompts[i]
        before = places.get(_earlier_id(conversation)) if conversation.turn > 1 else None
        if before is None:
            recorded = _prompt_before_reply(reference, conversation)
            earlier, answer = recorded, None
        else:
            earlier = reference.prompts[before]
            answer = reference.answers[before].ids if reference.answers else None
        if earlier is not None:
            prompts.append(_compare(conversation.id, "prompt", earlier, later))
        if earlier is not None and answer is not None:
            replies.append(_compare(conversation.id, "reply", [*earlier, *answer], later))
    examples = [found for found in (*prompts, *replies) if found is not None]
    return Stability(
        turns=len(prompts),
        prompts_kept=prompts.count(None),
        replies=len(replies),
        replies_kept=replies.count(None),
        example=examples[0] if examples else None,
    )


def stability_numbers(found: Stability) -> Mapping[str, int]:
    """The counts, for a verdict."""
    return {
        "turns": found.turns,
        "prompts_kept": found.prompts_kept,
        "replies": found.replies,
        "replies_kept": found.replies_kept,
    }


def _earlier_id(conversation: Conversation) -> str:
    """The id of the turn before: `c` for `c#2`, `c#2` for `c#3`."""
    turn = conversation.turn
    first = conversation.id.removesuffix(f"#{turn}")
    return first if turn == 2 else f"{first}#{turn - 1}"


def _prompt_before_reply(reference: Reference, conversation: Conversation) -> Ids | None:
    """The prompt to which the last recorded message of the assistant was the reply."""
    messages = conversation.messages
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
    if last == 0:
        return None
    try:
        return render(reference.tokenizer, replace(conversation, messages=messages[:last]))
    except ConversationError:
        return None  # a history that makes no prompt by itself


def _compare(name: str, what: str, earlier: Sequence[int], later: Sequence[int]) -> Finding | None:
    """Where the later prompt leaves the earlier turn, if it does."""
    if list(later[: len(earlier)]) == list(earlier):
        return None
    pairs = enumerate(zip(earlier, later, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(earlier), len(later)))
    return Finding(
        name,
        f"the {what} of the turn before it ({len(earlier)} tokens) is repeated for {at} only; a"
        " server computes the rest again",
    )
