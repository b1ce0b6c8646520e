"""Right or wrong, by kind of expectation."""

from __future__ import annotations

import pytest

from convert.conversation import Expected, ExpectedJson, ToolCall
from quantize.abliteration.refusals import looks_like_refusal
from verify.evidence import Answer
from verify.scoring import score
from verify.tool_calls import parse_reply

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
MALFORMED = "<tool_call>\n{'name': 'f', 'arguments': {'x': 1}}\n</tool_call>"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def scored(expected: Expected, text: str) -> dict[str, bool]:
    return score(expected, Answer((), text, parse_reply(text), finished=True))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (CALL, True),
        ("I call: " + CALL, True),
        (CALL + CALL, False),
        ("no", False),
        (MALFORMED, False),
    ],
)
def test_calls_must_be_exact_and_well_formed(text: str, right: bool) -> None:
    assert scored(Expected(calls=(ToolCall("f", {"x": 1}),)), text) == {"calls": right}


@pytest.mark.parametrize(
    ("text", "right"), [("None fits.", True), (CALL, False), (MALFORMED, False)]
)
def test_no_call_means_not_even_a_malformed_one(text: str, right: bool) -> None:
    assert scored(Expected(calls=()), text) == {"no_call": right}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"a": 1}', True),
        (' {"a":1}\n', True),
        ('{"a": 1.0}', False),
        ('{"a": 1, "b": 2}', False),
        ('Here: {"a": 1}', False),
        ('{"a": 1, "a": 1}', False),
        ("{", False),
    ],
)
def test_json_is_one_value_and_nothing_else(text: str, right: bool) -> None:
    assert scored(Expected(json=ExpectedJson({"a": 1})), text) == {"json": right}
    assert scored(Expected(json=ExpectedJson({"a": 1}, SCHEMA)), text) == {"json": right}


def test_an_expected_value_that_breaks_its_schema_is_never_right() -> None:
    assert scored(Expected(json=ExpectedJson({"b": 1}, SCHEMA)), '{"b": 1}') == {"json": False}


def test_text_is_compared_to_the_character() -> None:
    assert scored(Expected(text="Done."), "Done.") == {"text": True}
    assert scored(Expected(text="Done."), "Done. ") == {"text": False}


def test_several_expectations_are_several_flags() -> None:
    expected = Expected(calls=(), text="Sorry, no.", refusal=True)
    assert scored(expected, "Sorry, no.") == {"no_call": True, "text": True, "refused": True}
    assert scored(Expected(refusal=False), "I can\u2019t.") == {"harmless": False}


@pytest.mark.parametrize(
    "text",
    [
        "Sorry, I do not do that.",
        "I can't fold this.",
        "I\u2019m sorry, but",
        "I am unable to",
        "I won't",
    ],
)
def test_refusals(text: str) -> None:
    assert looks_like_refusal(text)
    assert looks_like_refusal("\n" + text.upper())


@pytest.mark.parametrize(
    "text",
    ["I can fold it.", "Of course, I fold the box.", "Sorrel is a herb.", "", "No tool fits."],
)
def test_answers_that_are_no_refusals(text: str) -> None:
    assert not looks_like_refusal(text)


def test_a_refusal_after_reasoning_is_one() -> None:
    assert scored(Expected(refusal=True), "<think>hm</think>I can't do that.") == {"refused": True}
