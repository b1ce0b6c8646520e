"""The Berkeley Function Calling Leaderboard, v4, Python single-turn, as a suite.

In: a folder with its five files and `possible_answer/` (Apache-2.0; ShishirPatil/gorilla,
berkeley-function-call-leaderboard/bfcl_eval/data). Out: 1,240 conversations: simple_python 400,
multiple 200, parallel 200, parallel_multiple 200, irrelevance 240. A folder with fewer prompts is
refused: a score over some of them would be taken for the score.

Two facts to know. Types are Python's and not JSON Schema's (`dict`, `float`, `any`, `tuple`); the
tool_use template of Hermes recurses without end on those it does not know, so they are mapped, as
the leaderboard's own handlers map them (constants/type_mappings.py). And a prompt is a list of
turns, each a list of messages, of which these categories have one.

An answer lists the values that are accepted of each parameter; "" among them says that it may be
left out. Names of functions are kept with their dots. What is right is said in `bfcl_scoring.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.conversation import AcceptedCall, Conversation, Expected, JsonObject
from convert.errors import ConversationError, InputError

CATEGORIES = {
    "simple_python": 400, "multiple": 200, "parallel": 200, "parallel_multiple": 200,
    "irrelevance": 240,
}  # fmt: skip
"""Prompts by category."""
IRRELEVANCE = "irrelevance"
TYPES = {"dict": "object", "float": "number", "any": "string", "tuple": "array"}
"""BFCL's names for types to JSON Schema's; the others are the same in both."""
_SAME = ("string", "integer", "number", "boolean", "array", "object", "null")
_OF_SCHEMAS = ("properties", "$defs", "definitions")


def is_bfcl(folder: Path) -> bool:
    """Whether a folder holds one of the five files."""
    return any(_file(folder, category).is_file() for category in CATEGORIES)


def read_bfcl(folder: Path) -> Iterator[tuple[Path, Conversation]]:
    """Every prompt with the file it is from, in the leaderboard's order.

    Raises InputError for a file that is missing or holds another number of prompts, and
    ConversationError with `file:line` for a prompt that is not of these categories' form.
    """
    for category, count in CATEGORIES.items():
        path = _file(folder, category)
        records = list(_records(path))
        if len(records) != count:
            raise InputError(f"{path}: {len(records)} prompts, expected {count}; download it again")
        answers: dict[str, Any] = {}
        if category != IRRELEVANCE:
            answered = folder / "possible_answer" / path.name
            answers = {record.get("id", ""): record for _, record in _records(answered)}
        for where, record in records:
            try:
                yield path, _conversation(category, record, answers)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                reason = f"{type(error).__name__} {error}"
                raise ConversationError(f"{where}: not a single-turn prompt: {reason}") from error


def _file(folder: Path, category: str) -> Path:
    return folder / f"BFCL_v4_{category}.json"


def _records(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """The objects of a file, one a line, each with its place."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; BFCL needs all its files") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConversationError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ConversationError(f"{path}:{number}: not a JSON object")
            yield f"{path}:{number}", record


def _conversation(category: str, record: JsonObject, answers: JsonObject) -> Conversation:
    (messages,) = record["question"]
    functions = {
        f["name"]: {**f, "parameters": schema(f["parameters"])} for f in record["function"]
    }
    if category == IRRELEVANCE:
        expected = Expected(calls=(), accepted=())
    else:
        due = answers[record["id"]]["ground_truth"]
        expected = Expected(accepted=tuple(_accepted(call, functions) for call in due))
    tools = tuple({"type": "function", "function": f} for f in functions.values())
    return Conversation(record["id"], tuple(messages), tools, expected, ("bfcl", category))


def _accepted(call: JsonObject, functions: dict[str, JsonObject]) -> AcceptedCall:
    ((name, arguments),) = call.items()
    options = {parameter: tuple(values) for parameter, values in arguments.items()}
    return AcceptedCall(name, options, functions[name]["parameters"])


def schema(stated: JsonObject) -> JsonObject:
    """A schema with JSON Schema's types, whole; ValueError for a type that is in neither table."""
    mapped: JsonObject = {}
    for key, value in stated.items():
        if key == "type":
            if value not in TYPES and value not in _SAME:
                raise ValueError(f"unknown type {value!r}")
            mapped[key] = TYPES.get(value, value)
        elif key in _OF_SCHEMAS:
            mapped[key] = {name: schema(inner) for name, inner in value.items()}
        elif key == "items":
            mapped[key] = schema(value)
        else:
            mapped[key] = value
    return mapped
