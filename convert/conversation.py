"""Conversations: the one JSONL schema for prompts, calibration data and suites.

In: a `.jsonl` file, one JSON object a line; `docs/conversations.md` is the page users read.
Out: `Conversation` values, in file order, checked as far as a file can be checked alone.

    {"id": "weather-1", "tags": ["single"],
     "messages": [{"role": "user", "content": "Weather in Oslo?"}],
     "tools": [{"type": "function", "function": {"name": "weather", "parameters": {...}}}],
     "expected": {"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]},
     "then": [{"messages": [{"role": "tool", "content": "-3"}], "expected": {"calls": []}}]}

Messages and tools stay JSON objects, because a chat template may read any of their keys. JSON is
read more strictly than Python does: a key twice in an object, NaN and Infinity, and half of a
surrogate pair are errors, since each would mean different things to different readers.

An empty `tools` list is refused: transformers then picks the `tool_use` template and llama.cpp the
default one. Nothing is rendered here (`convert/rendering.py`) and nothing scored (`verify/`).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import ConversationError

JsonObject = dict[str, Any]

_CONVERSATION_KEYS = ("id", "tags", "messages", "tools", "expected", "then")
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
    """

    id: str
    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...] = ()
    expected: Expected | None = None
    tags: tuple[str, ...] = ()
    then: tuple[Turn, ...] = ()
    turn: int = 1


def read_conversations(path: Path) -> list[Conversation]:
    """All conversations of a JSONL file, in order.

    Raises ConversationError with `file:line` for anything the schema in the module's head does
    not allow, for an id used twice, and for a file that holds no conversation at all.
    """
    conversations: list[Conversation] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        conversation = parse_conversation(_load_json(line, where), where)
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
    record = _object(value, where, "a conversation")
    _reject_unknown(record, _CONVERSATION_KEYS, where)
    return Conversation(
        id=_text(_require(record, "id", where), where, "id"),
        messages=_messages(record, where),
        tools=_tools(record["tools"], where) if "tools" in record else (),
        expected=_expected_of(record, where),
        tags=tuple(_text(t, where, "a tag") for t in _list(record.get("tags", []), where, "tags")),
        then=_turns(record["then"], where) if "then" in record else (),
    )


def _turns(value: Any, where: str) -> tuple[Turn, ...]:
    turns = []
    for index, item in enumerate(_list(value, where, "then")):
        place = f"{where}: then[{index}]"
        record = _object(item, place, "a turn")
        _reject_unknown(record, _TURN_KEYS, place)
        messages = _messages(record, place)
        if any(message["role"] == "assistant" for message in messages):
            raise ConversationError(
                f"{place}: a message of the assistant; between two replies stand tool results and"
                " words of the user, the replies are the model's own"
            )
        turns.append(Turn(messages, _expected_of(record, place)))
    return tuple(turns)


def _messages(record: JsonObject, where: str) -> tuple[JsonObject, ...]:
    messages = _list(_require(record, "messages", where), where, "messages")
    if not messages:
        raise ConversationError(f"{where}: messages is empty; expected at least one message")
    return tuple(_message(m, f"{where}: messages[{i}]") for i, m in enumerate(messages))


def _expected_of(record: JsonObject, where: str) -> Expected | None:
    return _expected(record["expected"], f"{where}: expected") if "expected" in record else None


def _message(value: Any, where: str) -> JsonObject:
    message = _object(value, where, "a message")
    _reject_unknown(message, _MESSAGE_KEYS, where)
    _text(_require(message, "role", where), where, "role")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise ConversationError(f"{where}: content is {_kind(content)}, expected a string or null")
    calls = _list(message.get("tool_calls", []), where, "tool_calls")
    for index, call in enumerate(calls):
        _wire_call(call, f"{where}.tool_calls[{index}]")
    if content is None and not calls:
        raise ConversationError(f"{where}: neither content nor tool_calls; a message needs one")
    return message


def _wire_call(value: Any, where: str) -> None:
    """A call in an assistant's message; arguments may be an object or, as OpenAI has it, text."""
    call = _object(value, where, "a tool call")
    function = _object(call.get("function", call), where, "function")
    _text(_require(function, "name", where), where, "name")
    if not isinstance(function.get("arguments", {}), (dict, str)):
        raise ConversationError(
            f"{where}: arguments is {_kind(function['arguments'])}, expected an object"
        )


def _tools(value: Any, where: str) -> tuple[JsonObject, ...]:
    tools = _list(value, where, "tools")
    if not tools:
        raise ConversationError(f"{where}: tools is an empty list; leave the key out for no tools")
    for index, item in enumerate(tools):
        place = f"{where}: tools[{index}]"
        tool = _object(item, place, "a tool")
        function = _object(tool.get("function", tool), place, "function")
        _text(_require(function, "name", place), place, "name")
        _object(function.get("parameters", {}), place, "parameters")
    return tuple(tools)


def _expected(value: Any, where: str) -> Expected:
    record = _object(value, where, "expected")
    _reject_unknown(record, _EXPECTED_KEYS, where)
    if not set(record) - {"schema"}:
        raise ConversationError(f"{where}: none of calls, text, json, refusal; give at least one")
    if "schema" in record and "json" not in record:
        raise ConversationError(f"{where}: schema without json; give the value the reply must have")
    if not isinstance(record.get("refusal", False), bool):
        raise ConversationError(f"{where}: refusal is {_kind(record['refusal'])}, expected a bool")
    if not isinstance(record.get("text", ""), str):
        raise ConversationError(f"{where}: text is {_kind(record['text'])}, expected a string")
    schema = _object(record["schema"], where, "schema") if "schema" in record else None
    return Expected(
        calls=_calls(record["calls"], where) if "calls" in record else None,
        text=record.get("text"),
        json=ExpectedJson(record["json"], schema) if "json" in record else None,
        refusal=record.get("refusal"),
    )


def _calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    calls = []
    for index, item in enumerate(_list(value, where, "calls")):
        place = f"{where}.calls[{index}]"
        call = _object(item, place, "a call")
        _reject_unknown(call, ("name", "arguments"), place)
        arguments = _object(_require(call, "arguments", place), place, "arguments")
        calls.append(ToolCall(_text(_require(call, "name", place), place, "name"), arguments))
    return tuple(calls)


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversationError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return text.split("\n")  # not splitlines: U+2028 may stand inside a JSON string


def _load_json(line: str, where: str) -> Any:
    try:
        value = json.loads(line, object_pairs_hook=_no_twins, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConversationError(
            f"{where}: half of a surrogate pair in a string; expected whole characters"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConversationError(f"{where}: not one JSON object on the line: {error}") from error
    return value


def _no_twins(pairs: list[tuple[str, Any]]) -> JsonObject:
    result = dict(pairs)
    if len(result) < len(pairs):
        twin = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twin!r} appears twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a bool"}
    return "null" if value is None else names.get(type(value), "a number")


def _require(record: JsonObject, key: str, where: str) -> Any:
    if key not in record:
        raise ConversationError(f"{where}: key {key!r} is missing; found {sorted(record)}")
    return record[key]


def _reject_unknown(record: JsonObject, known: tuple[str, ...], where: str) -> None:
    for key in record:
        if key not in known:
            raise ConversationError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")


def _object(value: Any, where: str, what: str) -> JsonObject:
    if not isinstance(value, dict):
        raise ConversationError(f"{where}: {what} is {_kind(value)}, expected an object")
    return value


def _list(value: Any, where: str, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConversationError(f"{where}: {what} is {_kind(value)}, expected a list")
    return value


def _text(value: Any, where: str, what: str) -> str:
    if not isinstance(value, str) or not value:
        found = "an empty string" if value == "" else _kind(value)
        raise ConversationError(f"{where}: {what} is {found}, expected a non-empty string")
    return value
