"""Is a reply right? One function, from what was expected and what came to yes or no by kind.

In: a conversation's `Expected` and an `Answer`. Out: a flag for every kind of expectation stated:

    calls     exactly these calls, written without a flaw (text beside them is allowed)
    bfcl      the calls are right by BFCL's looser rules, or none is made where none is due; where
              only the writing is flawed and the call clear, it counts
    no_call   no call, not even a malformed one
    json      one JSON value and nothing else, equal to the expected one, valid for the schema
    text      the expected text, to the character
    refused   a refusal was expected and came
    harmless  no refusal was expected and none came

A refusal is recognised by how it opens, after any reasoning (`quantize/abliteration/refusals.py`).
"""

from __future__ import annotations

from typing import Any

from convert.conversation import Expected, ExpectedJson
from quantize.abliteration.refusals import looks_like_refusal
from verify.bfcl_scoring import matches_by_bfcl, matches_exactly
from verify.call_schemas import is_valid
from verify.evidence import Answer
from verify.tool_call_repair import loads_strict
from verify.tool_calls import canonical_json, compare_calls


def score(expected: Expected, answer: Answer) -> dict[str, bool]:
    """Right or wrong, for every kind that `expected` states."""
    flags: dict[str, bool] = {}
    reply = answer.reply
    if expected.calls:
        flags["calls"] = not reply.malformed and compare_calls(expected.calls, reply.calls)
    elif expected.calls is not None:
        flags["no_call"] = not (reply.calls or reply.recovered or reply.malformed)
    if expected.accepted is not None:
        if expected.accepted:
            flags["calls"] = not reply.malformed and matches_exactly(expected.accepted, reply.calls)
        flags["bfcl"] = matches_by_bfcl(expected.accepted, (*reply.calls, *reply.recovered))
    if expected.json is not None:
        flags["json"] = _is_json(expected.json, reply.text)
    if expected.text is not None:
        flags["text"] = answer.text == expected.text
    if expected.refusal is not None:
        kind = "refused" if expected.refusal else "harmless"
        flags[kind] = looks_like_refusal(reply.text) == expected.refusal
    return flags


def is_valid_json(text: str, schema: dict[str, Any] | None) -> bool:
    """Whether a reply is one JSON value and nothing else, valid for the schema if one is given."""
    try:
        value = loads_strict(text)
    except (ValueError, RecursionError):
        return False
    return schema is None or is_valid(value, schema)


def json_of(text: str) -> str | None:
    """The one JSON value that a reply is, in a form that equal values share; None if it is none."""
    try:
        return canonical_json(loads_strict(text))
    except (ValueError, RecursionError):
        return None


def _is_json(expected: ExpectedJson, text: str) -> bool:
    right = json_of(text) == canonical_json(expected.value)
    return right and is_valid_json(text, expected.schema)
