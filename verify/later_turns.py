"""Conversations of several judged turns: what is asked after the reference has replied.

In: conversations and the reference's answers to them. Out: the conversations of the next turn, and
the ids of turns that cannot be asked.

A turn is the messages so far, the reference's own reply, and the recorded messages that come next:
results of its calls, or words of the user. Every model is asked exactly this, so at each turn both
answer to the same history, and an artifact's early mistake does not spoil its later turns: damage
is counted where it happens. (Errors that add up are another experiment; it needs tools that run.)

A recorded result answers a recorded call. It is fed only where the reference made that call: the
calls that the turn expects, or, where nothing is stated, as many as there are results. Otherwise
the turn and all after it are not reached, which the report says. Results stand in the order of the
calls they answer, so where calls are expected they follow the reference's order.

The reply goes back as a client sends it: calls as `tool_calls`, reasoning as `reasoning_content`,
the rest as `content`; what of it is shown again is the chat template's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from convert.conversation import Conversation, Expected, JsonObject, ToolCall, Turn
from verify.equality import Tier, tier_of_calls
from verify.evidence import Answer
from verify.tool_calls import compare_calls


@dataclass(frozen=True, slots=True)
class LaterTurns:
    """The conversations of one further turn, and the ids of those that end before it."""

    conversations: tuple[Conversation, ...]
    not_reached: tuple[str, ...]


def later_turns(conversations: Sequence[Conversation], answers: Sequence[Answer]) -> LaterTurns:
    """The turn after `answers`, of every conversation that has one."""
    found: list[Conversation] = []
    missed: list[str] = []
    for conversation, answer in zip(conversations, answers, strict=True):
        if not conversation.then:
            continue
        following = _follow(conversation, conversation.then[0], answer)
        if following is None:
            missed += conversation.later_ids()
        else:
            found.append(following)
    return LaterTurns(tuple(found), tuple(missed))


def _follow(conversation: Conversation, turn: Turn, answer: Answer) -> Conversation | None:
    """The next turn, or None if the recorded results are of other calls."""
    results = list(takewhile(lambda message: message["role"] == "tool", turn.messages))
    ordered = _in_order_of_calls(results, conversation.expected, answer)
    if ordered is None:
        return None
    rest = turn.messages[len(results) :]
    return Conversation(
        id=conversation.later_ids()[0],
        messages=(*conversation.messages, _message(answer, ordered), *ordered, *rest),
        tools=conversation.tools,
        expected=turn.expected,
        tags=conversation.tags,
        then=conversation.then[1:],
        turn=conversation.turn + 1,
        template_kwargs=conversation.template_kwargs,
    )


def _in_order_of_calls(
    results: Sequence[JsonObject], expected: Expected | None, answer: Answer
) -> list[JsonObject] | None:
    """The results as the reply's calls stand; None if they are no results of these calls."""
    reply = answer.reply
    if not results:
        return []
    if reply.malformed or len(reply.calls) != len(results):
        return None
    if expected is None or expected.calls is None:
        return list(results)
    if tier_of_calls(expected.calls, reply.calls) is not Tier.JSON:
        return None
    left = list(zip(expected.calls, results, strict=True))
    ordered = []
    for call in reply.calls:
        place = next(i for i, (due, _) in enumerate(left) if compare_calls([due], [call]))
        ordered.append(left.pop(place)[1])
    return ordered


def _message(answer: Answer, results: Sequence[JsonObject]) -> JsonObject:
    """The reply as a message of the history; calls take the ids that their results name."""
    reply = answer.reply
    message: JsonObject = {"role": "assistant"}
    if reply.calls and not reply.malformed:
        message["content"] = reply.text
        message["tool_calls"] = [
            _wire(call, results[i] if i < len(results) else {})
            for i, call in enumerate(reply.calls)
        ]
    else:
        message["content"] = answer.text[reply.answer_start :]
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    return message


def _wire(call: ToolCall, result: JsonObject) -> JsonObject:
    function = {"name": call.name, "arguments": call.arguments}
    named = {"id": result["tool_call_id"]} if "tool_call_id" in result else {}
    return {**named, "type": "function", "function": function}
