"""The words of the OpenAI interface: conversations as it takes them, answers as it gives them.

In: a conversation, or an answer already parsed from JSON. Out: messages and tools in the form that
servers accept; of an answer, the ids it names, a count, a tool call. Sends nothing.

How token ids come back is each server's own extension: vLLM has `token_ids` on request,
llama-server `tokens` beside a verbose answer, and ids in its log-probabilities before that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from convert.conversation import Conversation, ToolCall
from verify.engines.openai_client import JsonObject
from verify.tool_call_repair import loads_strict


def named_ids(choice: JsonObject, answer: JsonObject) -> Any:
    """The ids of a reply, or None: vLLM's `token_ids`, llama-server's `tokens`, ids of logprobs.

    llama-server leaves a token out of its log-probabilities if its bytes end inside a character.
    """
    verbose, logprobs = answer.get("__verbose"), choice.get("logprobs")
    if choice.get("token_ids") is not None:
        return choice["token_ids"]
    if isinstance(verbose, dict) and verbose.get("tokens"):
        return verbose["tokens"]
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if content and all(isinstance(token, dict) and "id" in token for token in content):
        return [token["id"] for token in content]
    return None


def count_of(answer: JsonObject, key: str) -> int | None:
    """A count of tokens that the answer states; None if it does not."""
    usage = answer.get("usage")
    found = usage.get(key) if isinstance(usage, dict) else None
    return found if isinstance(found, int) else None


def read_call(call: Any) -> ToolCall:
    """A call in OpenAI's form, its arguments JSON text."""
    function = call["function"]
    name, arguments = function["name"], loads_strict(function["arguments"])
    if not (isinstance(name, str) and isinstance(arguments, dict)):
        raise TypeError("a name and an object of arguments were expected")
    return ToolCall(name, arguments)


def wire_tool(tool: JsonObject) -> JsonObject:
    """A tool as the interface has it: inside `{"type": "function"}`."""
    return tool if "function" in tool else {"type": "function", "function": tool}


def wire_messages(conversation: Conversation) -> Iterator[JsonObject]:
    """Messages as the interface has them: calls with an id, arguments as text, results by id.

    Servers refuse a call without an id, which our conversations may leave out; one that is missing
    is made up, and results take the ids of the calls before them in order.
    """
    waiting: list[str] = []
    for place, message in enumerate(conversation.messages):
        sent = dict(message)
        if message.get("tool_calls"):
            sent["tool_calls"] = [
                _wire_call(call, f"call_{place}_{number}")
                for number, call in enumerate(message["tool_calls"])
            ]
            waiting = [call["id"] for call in sent["tool_calls"]]
        elif message["role"] == "tool":
            following = waiting.pop(0) if waiting else f"call_{place}_0"
            sent.setdefault("tool_call_id", following)
        yield sent


def _wire_call(call: JsonObject, made_up_id: str) -> JsonObject:
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {
        "id": call.get("id", made_up_id),
        "type": "function",
        "function": {"name": function["name"], "arguments": text},
    }
