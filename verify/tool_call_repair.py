"""Reads what a model wrote where JSON should stand, forgiving what can be forgiven safely.

In: the text between two tool-call tags that is not one well-formed call. Out: the JSON values it
holds and the name of every repair that was needed. A repair never invents a value: it closes what
was left open, drops what is too much, or reads another notation for the same value. A string that
was cut off, a NaN, or text that is no notation for anything is lost, and said to be.

Repairs are tried in the order of `_REPAIRS`, each once over the text, so the time is linear; what
comes out of Python's own literal reader is held to a length at which that is quick.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
MAX_LITERAL_CHARACTERS = 20_000

_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_STEP = re.compile(rf'{_STRING}|[{{}}\[\]"\\]|</?tool_call>', re.DOTALL)
_TRAILING_COMMA = re.compile(rf"({_STRING}|\\.)|,(?=\s*[}}\]])", re.DOTALL)
_FENCE = "```"


def scan_value(text: str, start: int) -> int | None:
    """Where the object or list that begins at `start` ends, by strings and brackets alone.

    None if none begins there, or if a tag, a lone quote or a backslash stands outside a string, or
    it nests deeper than MAX_DEPTH, or it never ends.
    """
    return scan(text, start)[0]


def scan(text: str, start: int) -> tuple[int | None, bool]:
    """What `scan_value` says, and whether it would say the same with more text after this one."""
    first = text[start : start + 1]
    if first not in ("{", "["):
        return None, first != ""
    depth = 0
    for step in _STEP.finditer(text, start):
        mark = step.group()
        if mark in "{[":
            depth += 1
            if depth > MAX_DEPTH:
                return None, True
        elif mark in "}]":
            depth -= 1
            if depth == 0:
                return step.end(), True
        elif len(mark) == 1 or mark[0] == "<":
            return None, mark != '"'
    return None, False


def loads_strict(text: str, *, twins: bool = False, controls: bool = False) -> Any:
    """JSON and nothing else: no NaN, no key twice, no deep nesting, nothing too large for a double.

    Raises ValueError.

    `twins` allows a key to appear twice, `controls` raw control characters inside strings.
    """
    _check_depth(text)
    return json.loads(
        text,
        strict=not controls,
        object_pairs_hook=None if twins else _no_twins,
        parse_constant=_no_constant,
        parse_float=_finite,
    )


def read_values(text: str) -> tuple[list[Any], list[str]]:
    """The JSON values `text` holds, and the repairs it took, or why nothing could be read."""
    if not text:
        return [], ["nothing between the tags: lost"]
    for name, repair in _REPAIRS:
        value = repair(text)
        if value is not None:
            return (value if isinstance(value, list) else [value]), ([name] if name else [])
    values, rest = _read_sequence(text)
    if values:
        reasons = ["several objects in one tag"] if len(values) > 1 else []
        return values, reasons + (["text around the object"] if rest else [])
    return [], ["not JSON: lost"]


def _read_sequence(text: str) -> tuple[list[Any], bool]:
    """Objects one after another, each perhaps mended, and whether other text stands by them."""
    values: list[Any] = []
    rest = False
    position = 0
    while (start := text.find("{", position)) >= 0:
        end = scan_value(text, start)
        if end is None:
            break
        mended = (repair(text[start:end]) for _, repair in _REPAIRS)
        value = next((v for v in mended if v is not None), None)
        rest = rest or value is None or bool(text[position:start].strip(" \t\r\n,"))
        values += [] if value is None else [value]
        position = end
    return values, rest or bool(text[position:].strip(" \t\r\n,"))


def _as_json(text: str) -> Any:
    return _container(lambda: loads_strict(text))


def _list_of_calls(text: str) -> Any:
    value = _as_json(text)
    return value if isinstance(value, list) else None


def _object_only(text: str) -> Any:
    value = _as_json(text)
    return value if isinstance(value, dict) else None


def _with_twins(text: str) -> Any:
    return _container(lambda: loads_strict(text, twins=True))


def _with_controls(text: str) -> Any:
    return _container(lambda: loads_strict(text, controls=True))


def _without_trailing_commas(text: str) -> Any:
    return _as_json(_TRAILING_COMMA.sub(lambda found: found.group(1) or "", text))


def _closed(text: str) -> Any:
    """Brackets left open at the end are closed; a string left open is not."""
    missing: list[str] = []
    for step in _STEP.finditer(text):
        mark = step.group()
        if mark in "{[":
            missing.append("}" if mark == "{" else "]")
        elif mark in "}]":
            if not missing or missing.pop() != mark:
                return None
        elif len(mark) == 1:
            return None
    return _as_json(text + "".join(reversed(missing))) if missing else None


def _unfenced(text: str) -> Any:
    if not (text.startswith(_FENCE) and text.endswith(_FENCE) and len(text) > 2 * len(_FENCE)):
        return None
    return _as_json(text.strip("`").removeprefix("json"))


def _as_python(text: str) -> Any:
    if len(text) > MAX_LITERAL_CHARACTERS:
        return None

    def read() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on escapes that Python does not know
            return loads_strict(json.dumps(ast.literal_eval(text), allow_nan=False))

    return _container(read)


_REPAIRS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("", _object_only),
    ("a list of calls in one tag", _list_of_calls),
    ("a key appears twice, the last one counts", _with_twins),
    ("a raw line break or control character in a string", _with_controls),
    ("a trailing comma", _without_trailing_commas),
    ("a code fence inside the tag", _unfenced),
    ("a closing bracket is missing", _closed),
    ("Python notation for JSON", _as_python),
)


def _container(read: Callable[[], Any]) -> Any:
    """What `read` returns if that is an object or a list, else None."""
    try:
        value = read()
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _check_depth(text: str) -> None:
    """Refuse deep nesting before a parser recurses into it, and what cannot be JSON, early."""
    depth = 0
    for step in _STEP.finditer(text):
        mark = step.group()
        depth += (mark in "{[") - (mark in "}]")
        if depth > MAX_DEPTH or mark in ('"', "\\"):
            raise ValueError(f"not JSON, or nested deeper than {MAX_DEPTH}")


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key appears twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is beyond the range of a double")
    return value
