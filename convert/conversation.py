"""Conversations: the one JSONL schema for prompts, calibration data and suites.

In: a `.jsonl` file, one JSON object a line; `docs/conversations.md` is the page users read.
Out: `Conversation` values, in file order, checked as far as a file can be checked alone.

    {"id": "weather-1", "tags": ["single"],
     "messages": [{"role": "user", "content": "Weather in Oslo?"}],
     "tools": [{"type": "function", "function": {"name": "weather", "parameters": {...}}}],
     "expected": {"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]},
     "then": [{"messages": [{"role": "tool", "content": "-3"}], "expected": {"calls": []}}],
     "template_kwargs": {"thinking": true}}

Messages and tools stay JSON objects, because a chat template may read any of their keys. JSON is
read more strictly than Python does: a key twice in an object, NaN and Infinity, and half of a
surrogate pair are errors, since each would mean different things to different readers.

An empty `tools` list is refused: transformers then picks the `tool_use` template and llama.cpp the
default one. Nothing is rendered here (`convert/rendering.py`) and nothing scored (`verify/`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.conversation_json import JsonObject as JsonObject  # from here for all others
from convert.conversation_json import (
    kind_of,
    list_of,
    load_json,
    object_of,
    read_lines,
    reject_unknown,
    require,
    text_of,
)
from convert.errors import ConversationError

_CONVERSATION_KEYS = ("id", "tags", "messages", "tools", "expected", "then", "template_kwargs")
_OURS_TO_SET = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
"""Variables of a template that follow from the conversation and the model."""
_TURN_KEYS = ("messages", "expected")
_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_EXPECTED_KEYS = ("calls", "text", "json", "schema", "refusal")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function's name and the JSON object of its arguments."""

    name: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True)
class AcceptedCall:
    """A call with the values that are accepted of each argument, and the schema they are read by.

    An empty text among the values says that the argument may be left out (BFCL's convention).
    """

    name: str
    arguments: dict[str, tuple[Any, ...]]
    parameters: JsonObject


@dataclass(frozen=True, slots=True)
class ExpectedJson:
    """A reply that is JSON: the value it must equal and, if given, the schema it must satisfy."""

    value: Any
    schema: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Expected:
    """What a right reply looks like; a field that is None is not checked.

    calls:   the calls to make, in any order; an empty tuple means that no call must be made.
    text:    the whole reply, to the character.
    json:    the reply is this JSON value.
    refusal: True, the reply must refuse; False, it must not.
    accepted: calls to make, where several values are right; no JSONL file states them, a benchmark
              does.
    """

    calls: tuple[ToolCall, ...] | None = None
    text: str | None = None
    json: ExpectedJson | None = None
    refusal: bool | None = None
    accepted: tuple[AcceptedCall, ...] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """What comes after a reply: the recorded results of its calls, or words of the user, and then
    the next reply looked for."""

    messages: tuple[JsonObject, ...]
    expected: Expected | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI's form, the tools on offer (none: empty) and the reply looked for.

    `then` are further turns, in order: only verify replays them. `turn` counts from 1.
    `template_kwargs` are further variables for the chat template (`thinking`, `keep_cots`).
    """

    id: str
    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...] = ()
    expected: Expected | None = None
    tags: tuple[str, ...] = ()
    then: tuple[Turn, ...] = ()
    turn: int = 1
    template_kwargs: JsonObject = field(default_factory=dict)

    @property
    def first_id(self) -> str:
        """The id of the first turn, which all turns of a conversation share."""
        return self.id if self.turn == 1 else self.id.removesuffix(f"#{self.turn}")

    def later_ids(self) -> tuple[str, ...]:
        """The ids of the turns that come after this one: `c#2` and `c#3` of a first one, `c`."""
        numbers = range(self.turn + 1, self.turn + 1 + len(self.then))
        return tuple(f"{self.first_id}#{number}" for number in numbers)


def read_conversations(path: Path) -> list[Conversation]:
    """All conversations of a JSONL file, in order.

    Raises ConversationError with `file:line` for anything the schema in the module's head does
    not allow, for an id used twice, and for a file that holds no conversation at all.
    """
    conversations: list[Conversation] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        conversation = parse_conversation(load_json(line, where), where)
        if conversation.id in first_line:
            raise ConversationError(
                f"{where}: id {conversation.id!r} was used on line "
                f"{first_line[conversation.id]}; give every conversation an id of its own"
            )
        first_line[conversation.id] = number
        conversations.append(conversation)
    if not conversations:
        raise ConversationError(f"{path}: no conversation in it; expected one JSON object a line")
    return conversations


def parse_conversation(value: Any, where: str) -> Conversation:
    """One decoded JSON object as a Conversation; `where` begins every error message."""
    record = object_of(value, where, "a conversation")
    reject_unknown(record, _CONVERSATION_KEYS, where)
    return Conversation(
        id=text_of(require(record, "id", where), where, "id"),
        messages=_messages(record, where),
        tools=_tools(record["tools"], where) if "tools" in record else (),
        expected=_expected_of(record, where),
        tags=tuple(
            text_of(t, where, "a tag") for t in list_of(record.get("tags", []), where, "tags")
        ),
        then=_turns(record["then"], where) if "then" in record else (),
        template_kwargs=_template_kwargs(record, where),
    )


def _template_kwargs(record: JsonObject, where: str) -> JsonObject:
    variables = object_of(record.get("template_kwargs", {}), where, "template_kwargs")
    for name in variables:
        if name in _OURS_TO_SET:
            raise ConversationError(
                f"{where}: template_kwargs sets {name!r}, which is not a conversation's to set;"
                " it is for a template's own variables, as thinking"
            )
    return variables


def _turns(value: Any, where: str) -> tuple[Turn, ...]:
    turns = []
    for index, item in enumerate(list_of(value, where, "then")):
        place = f"{where}: then[{index}]"
        record = object_of(item, place, "a turn")
        reject_unknown(record, _TURN_KEYS, place)
        messages = _messages(record, place)
        if any(message["role"] == "assistant" for message in messages):
            raise ConversationError(
                f"{place}: a message of the assistant; between two replies stand tool results and"
                " words of the user, the replies are the model's own"
            )
        turns.append(Turn(messages, _expected_of(record, place)))
    return tuple(turns)


def _messages(record: JsonObject, where: str) -> tuple[JsonObject, ...]:
    messages = list_of(require(record, "messages", where), where, "messages")
    if not messages:
        raise ConversationError(f"{where}: messages is empty; expected at least one message")
    return tuple(_message(m, f"{where}: messages[{i}]") for i, m in enumerate(messages))


def _expected_of(record: JsonObject, where: str) -> Expected | None:
    return _expected(record["expected"], f"{where}: expected") if "expected" in record else None


def _message(value: Any, where: str) -> JsonObject:
    message = object_of(value, where, "a message")
    reject_unknown(message, _MESSAGE_KEYS, where)
    text_of(require(message, "role", where), where, "role")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise ConversationError(
            f"{where}: content is {kind_of(content)}, expected a string or null"
        )
    calls = list_of(message.get("tool_calls", []), where, "tool_calls")
    for index, call in enumerate(calls):
        _wire_call(call, f"{where}.tool_calls[{index}]")
    if content is None and not calls:
        raise ConversationError(f"{where}: neither content nor tool_calls; a message needs one")
    return message


def _wire_call(value: Any, where: str) -> None:
    """A call in an assistant's message; arguments may be an object or, as OpenAI has it, text."""
    call = object_of(value, where, "a tool call")
    function = object_of(call.get("function", call), where, "function")
    text_of(require(function, "name", where), where, "name")
    if not isinstance(function.get("arguments", {}), (dict, str)):
        raise ConversationError(
            f"{where}: arguments is {kind_of(function['arguments'])}, expected an object"
        )


def _tools(value: Any, where: str) -> tuple[JsonObject, ...]:
    tools = list_of(value, where, "tools")
    if not tools:
        raise ConversationError(f"{where}: tools is an empty list; leave the key out for no tools")
    for index, item in enumerate(tools):
        place = f"{where}: tools[{index}]"
        tool = object_of(item, place, "a tool")
        function = object_of(tool.get("function", tool), place, "function")
        text_of(require(function, "name", place), place, "name")
        object_of(function.get("parameters", {}), place, "parameters")
    return tuple(tools)


def _expected(value: Any, where: str) -> Expected:
    record = object_of(value, where, "expected")
    reject_unknown(record, _EXPECTED_KEYS, where)
    if not set(record) - {"schema"}:
        raise ConversationError(f"{where}: none of calls, text, json, refusal; give at least one")
    if "schema" in record and "json" not in record:
        raise ConversationError(f"{where}: schema without json; give the value the reply must have")
    if not isinstance(record.get("refusal", False), bool):
        raise ConversationError(
            f"{where}: refusal is {kind_of(record['refusal'])}, expected a bool"
        )
    if not isinstance(record.get("text", ""), str):
        raise ConversationError(f"{where}: text is {kind_of(record['text'])}, expected a string")
    schema = object_of(record["schema"], where, "schema") if "schema" in record else None
    return Expected(
        calls=_calls(record["calls"], where) if "calls" in record else None,
        text=record.get("text"),
        json=ExpectedJson(record["json"], schema) if "json" in record else None,
        refusal=record.get("refusal"),
    )


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    calls = []
    for index, item in enumerate(list_of(value, where, "calls")):
        place = f"{where}.calls[{index}]"
        call = object_of(item, place, "a call")
        reject_unknown(call, ("name", "arguments"), place)
        arguments = object_of(require(call, "arguments", place), place, "arguments")
        calls.append(ToolCall(text_of(require(call, "name", place), place, "name"), arguments))
    return tuple(calls)
