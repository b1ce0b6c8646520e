"""JSON that people wrote into a JSONL file, checked value by value.

In: a line, or a decoded value and where it stands (`file:line: key`). Out: the value as the kind
that is needed, or a ConversationError that says what was found there, what was expected and where.
JSON is read more strictly than Python does: a key twice in an object, NaN and Infinity, and half of
a surrogate pair are errors. What the keys mean is not known here (`conversation.py`).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from convert.errors import ConversationError

JsonObject = dict[str, Any]


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversationError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return text.split("\n")  # not splitlines: U+2028 may stand inside a JSON string


def load_json(line: str, where: str) -> Any:
    """One line's JSON value."""
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


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a bool"}
    return "null" if value is None else names.get(type(value), "a number")


def require(record: JsonObject, key: str, where: str) -> Any:
    """The value of a key that must be there."""
    if key not in record:
        raise ConversationError(f"{where}: key {key!r} is missing; found {sorted(record)}")
    return record[key]


def reject_unknown(record: JsonObject, known: tuple[str, ...], where: str) -> None:
    """Refuse a key that is not known: it is a typing mistake more often than an extension."""
    for key in record:
        if key not in known:
            raise ConversationError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")


def object_of(value: Any, where: str, what: str) -> JsonObject:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        raise ConversationError(f"{where}: {what} is {kind_of(value)}, expected an object")
    return value


def list_of(value: Any, where: str, what: str) -> list[Any]:
    """`value`, which must be a list."""
    if not isinstance(value, list):
        raise ConversationError(f"{where}: {what} is {kind_of(value)}, expected a list")
    return value


def text_of(value: Any, where: str, what: str) -> str:
    """`value`, which must be a text that is not empty."""
    if not isinstance(value, str) or not value:
        found = "an empty string" if value == "" else kind_of(value)
        raise ConversationError(f"{where}: {what} is {found}, expected a non-empty string")
    return value
