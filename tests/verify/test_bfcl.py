"""BFCL as a suite: all of it is read, its types are JSON Schema's, and its rules are its rules."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from convert.conversation import AcceptedCall, Conversation, Expected, ToolCall
from convert.errors import ConversationError, InputError
from convert.rendering import Tokenizer, render
from tests.verify.replies import answer
from verify.behaviour import check_behaviour, not_measured
from verify.bfcl import CATEGORIES, read_bfcl, schema
from verify.bfcl_scoring import (
    fits_by_bfcl,
    fits_exactly,
    matches_by_bfcl,
    matches_exactly,
)
from verify.call_outcomes import CallOutcome, call_outcome, calls_due
from verify.evidence import Evidence, Reference
from verify.scoring import score
from verify.suite import read_suite

NANO = Path(__file__).parents[2] / "examples/hermes-nano"
DATA = Path(os.environ.get("HERMES_QUANT_DATA", "")) / "bfcl"
needs_data = pytest.mark.skipif(
    not (os.environ.get("HERMES_QUANT_DATA") and DATA.is_dir()),
    reason="BFCL is not at hand; set HERMES_QUANT_DATA",
)


@pytest.fixture(scope="module")
def suite() -> tuple[Conversation, ...]:
    return read_suite(DATA, NANO).conversations


@needs_data
def test_all_1240_prompts_are_read(suite: tuple[Conversation, ...]) -> None:
    assert len(suite) == 1240
    counts = Counter(conversation.tags[1] for conversation in suite)
    assert counts == CATEGORIES
    assert {conversation.tags[0] for conversation in suite} == {"bfcl"}
    due = [c.expected.accepted for c in suite if c.expected is not None]
    assert Counter(bool(calls) for calls in due) == {True: 1000, False: 240}


def types_of(value: Any, *, names: bool = False) -> Iterator[str]:
    """Every type that a schema states; the keys under `properties` are names."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "type" and not names:
            yield inner
        elif isinstance(inner, dict):
            yield from types_of(inner, names=key == "properties" and not names)


@needs_data
def test_every_type_is_one_of_json_schema(suite: tuple[Conversation, ...]) -> None:
    found: Counter[str] = Counter()
    for conversation in suite:
        for tool in conversation.tools:
            parameters = tool["function"]["parameters"]
            Draft202012Validator.check_schema(
                {k: v for k, v in parameters.items() if k != "required"}
            )
            found.update(types_of(parameters))
    assert found == {
        "string": 2925 + 4, "object": 1959, "integer": 1526, "number": 639, "array": 353 + 8,
        "boolean": 205,
    }  # fmt: skip


@needs_data
def test_all_of_them_can_be_rendered(suite: tuple[Conversation, ...]) -> None:
    tokenizer = Tokenizer.open(NANO)
    try:
        lengths = [len(render(tokenizer, conversation)) for conversation in suite]
    finally:
        tokenizer.close()
    assert min(lengths) > 20


def chosen(conversation: Conversation, place: int = 0) -> str:
    """A reply that makes the accepted calls, each argument with its value number `place`."""
    assert conversation.expected is not None
    calls = []
    for wanted in conversation.expected.accepted or ():
        arguments = {}
        for name, options in wanted.arguments.items():
            values = [option for option in options if option != ""]
            offered = name in wanted.parameters["properties"]
            needed = "" not in options or name in wanted.parameters["required"]
            if needed or (place and values and offered):
                arguments[name] = concrete(values[min(place, len(values) - 1)])
        body = json.dumps({"name": wanted.name, "arguments": arguments})
        calls.append(f"<tool_call>\n{body}\n</tool_call>")
    return "\n".join(calls) or "None of these tools fits."


def concrete(value: Any) -> Any:
    """An accepted value whose objects list their own alternatives, as one value."""
    if isinstance(value, dict):
        return {k: concrete(o[0]) for k, o in value.items() if "" not in o}
    return [concrete(item) for item in value] if isinstance(value, list) else value


@needs_data
@pytest.mark.parametrize("place", [0, 1, 9])
def test_every_accepted_answer_is_right_in_both_tiers(
    suite: tuple[Conversation, ...], place: int
) -> None:
    for conversation in suite:
        assert conversation.expected is not None
        flags = score(conversation.expected, answer(chosen(conversation, place)))
        kind = "calls" if conversation.expected.accepted else "no_call"
        assert flags == {kind: True, "bfcl": True}, conversation.id


@needs_data
def test_no_call_and_another_name_are_wrong_in_both_tiers(suite: tuple[Conversation, ...]) -> None:
    for conversation in suite:
        if conversation.tags[1] != "irrelevance":
            assert conversation.expected is not None
            renamed = chosen(conversation).replace('"name": "', '"name": "x', 1)
            for wrong in ("No.", renamed, chosen(conversation) * 2):
                flags = score(conversation.expected, answer(wrong))
                assert flags == {"calls": False, "bfcl": False}, (conversation.id, wrong)


def wanted(options: list[Any], stated: dict[str, Any], *, required: bool = True) -> AcceptedCall:
    parameters = {"type": "object", "properties": {"x": stated}}
    return AcceptedCall("f", {"x": tuple(options)}, parameters | {"required": ["x"] * required})


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
BOOLEAN, OBJECT, ANY_LIST = {"type": "boolean"}, {"type": "object"}, {"type": "array"}


def list_of(kind: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": kind}}


@pytest.mark.parametrize(
    ("options", "stated", "value", "exactly", "by_bfcl"),
    [
        # texts: any case, without spaces and , . / - _ * ^, one kind of quote
        (["New York"], STRING, "New York", True, True),
        (["New York"], STRING, "new york", False, True),
        (["April 1, 2024"], STRING, "April 1 2024", False, True),
        (["x**2"], STRING, "x^2", False, True),
        (["x**2"], STRING, "x+2", False, False),
        (["it's"], STRING, 'it"s', False, True),
        (["a_b"], STRING, "a-b", False, True),
        (["a+b"], STRING, "a b", False, False),
        (["a;b"], STRING, "ab", False, False),
        (["a\tb"], STRING, "ab", False, False),
        # the trap: signs and points are taken away too
        (["1.5"], STRING, "15", False, True),
        (["-5"], STRING, "5", False, True),
        (["a", "b"], STRING, "B", False, True),
        (["a", "b"], STRING, "c", False, False),
        # exact types; a whole number may stand for a float
        ([5], INTEGER, 5, True, True),
        ([5], INTEGER, 5.0, False, False),
        ([5], INTEGER, "5", False, False),
        ([1], INTEGER, True, False, False),
        ([5.0], NUMBER, 5.0, True, True),
        ([5.0], NUMBER, 5, False, True),
        ([5], NUMBER, 5.0, False, True),
        ([5.0], NUMBER, "5.0", False, False),
        ([1.0], NUMBER, True, False, False),
        ([True], BOOLEAN, True, True, True),
        ([True], BOOLEAN, "true", False, False),
        ([True], BOOLEAN, 1, False, False),
        # a value of the answer's type, where that is not the schema's: equal to the character
        (["n"], INTEGER, "n", True, True),
        (["n"], INTEGER, "N", False, False),
        ([True], STRING, True, True, True),
        # lists: in order, texts compared as texts, items of the stated or of the answer's type
        ([[3, 5]], list_of("integer"), [3, 5], True, True),
        ([[3, 5]], list_of("integer"), [5, 3], False, False),
        ([[3, 5]], list_of("integer"), [3], False, False),
        ([["A b"]], list_of("string"), ["ab"], False, True),
        ([[1.0]], list_of("number"), [1], False, False),
        ([[1]], list_of("number"), [1], True, True),
        ([[1.0], [1]], list_of("number"), [1], True, True),
        ([[[1, 2]]], list_of("array"), [[1, 2]], True, True),
        ([[["A"]]], list_of("array"), [["a"]], False, False),
        ([[1]], ANY_LIST, [1], True, True),
        ([[1]], list_of("integer"), "1", False, False),
        # objects: every key lists its values
        ([{"min": [3], "unit": ["mm", ""]}], OBJECT, {"min": 3, "unit": "mm"}, True, True),
        ([{"min": [3], "unit": ["mm", ""]}], OBJECT, {"min": 3}, True, True),
        ([{"min": [3], "unit": ["mm", ""]}], OBJECT, {"min": 3, "unit": "MM"}, False, True),
        ([{"min": [3], "unit": ["mm", ""]}], OBJECT, {"unit": "mm"}, False, False),
        ([{"min": [3]}], OBJECT, {"min": 3, "max": 4}, False, False),
        ([{"min": [3]}], OBJECT, {"min": 4}, False, False),
        ([{"a": [["X"]]}], OBJECT, {"a": ["x"]}, False, False),
        ([[{"k": ["a"]}, {"k": ["b"]}]], list_of("object"), [{"k": "a"}, {"k": "b"}], True, True),
        ([[{"k": ["a"]}, {"k": ["b"]}]], list_of("object"), [{"k": "b"}, {"k": "a"}], False, False),
        ([[{"k": ["a"]}]], list_of("object"), [{"k": "A"}], False, True),
        ([[{"k": ["a"]}]], list_of("object"), [], False, False),
        # "" is a mark and, for texts and lists, a value that the leaderboard happens to accept
        (["mm", ""], STRING, "", False, True),
        ([[1], ""], list_of("integer"), [], False, True),
        ([{"a": [1]}, ""], OBJECT, {}, False, False),
        ([1, ""], INTEGER, "", False, False),
    ],
)  # fmt: skip
def test_the_rules_for_one_argument(
    options: list[Any], stated: dict[str, Any], value: Any, exactly: bool, by_bfcl: bool
) -> None:
    accepted, made = wanted(options, stated), ToolCall("f", {"x": value})
    assert (fits_exactly(accepted, made), fits_by_bfcl(accepted, made)) == (exactly, by_bfcl)


@pytest.mark.parametrize("fits", [fits_exactly, fits_by_bfcl])
def test_the_rules_for_which_arguments_there_are(
    fits: Callable[[AcceptedCall, ToolCall], bool],
) -> None:
    must, may = wanted(["a"], STRING), wanted(["a", ""], STRING, required=False)
    assert not fits(must, ToolCall("f", {}))
    assert fits(may, ToolCall("f", {}))
    assert not fits(wanted(["a"], STRING, required=False), ToolCall("f", {}))
    assert not fits(wanted(["a", ""], STRING), ToolCall("f", {}))
    assert not fits(may, ToolCall("f", {"x": "a", "y": 1}))
    assert not fits(must, ToolCall("g", {"x": "a"}))
    assert not fits(must, ToolCall("F", {"x": "a"}))


@pytest.mark.parametrize("matches", [matches_exactly, matches_by_bfcl])
def test_parallel_calls_are_matched_optimally_in_any_order(
    matches: Callable[[list[AcceptedCall], list[ToolCall]], bool],
) -> None:
    """A greedy matcher gives the first answer the call that only the second can use."""
    wide, narrow = wanted(["a", "b"], STRING), wanted(["a"], STRING)
    a, b = ToolCall("f", {"x": "a"}), ToolCall("f", {"x": "b"})
    assert matches([wide, narrow], [a, b])
    assert matches([wide, narrow], [b, a])
    assert matches([narrow, wide], [a, b])
    assert not matches([wide, narrow], [b, b])
    assert not matches([wide, narrow], [a])
    assert not matches([wide], [a, b])
    assert matches([], [])
    assert not matches([], [a])


def test_a_flawed_call_counts_by_bfcl_and_not_exactly() -> None:
    expected = Expected(accepted=(wanted(["a"], STRING),))
    flawed = "<tool_call>{'name': 'f', 'arguments': {'x': 'a'}}</tool_call>"
    assert score(expected, answer(flawed)) == {"calls": False, "bfcl": True}
    none = Expected(calls=(), accepted=())
    assert score(none, answer(flawed)) == {"no_call": False, "bfcl": False}
    assert score(none, answer("<tool_call>x</tool_call>")) == {"no_call": False, "bfcl": True}


def test_what_became_of_a_call_that_has_several_right_values() -> None:
    expected = Expected(accepted=(wanted(["a", "b"], STRING),))
    conversation = Conversation(
        "c", ({"role": "user", "content": "x"},), ({"name": "f"},), expected
    )
    due = calls_due(conversation, answer("nothing"))
    assert due is not None

    def outcome(value: str, name: str = "f") -> CallOutcome:
        body = json.dumps({"name": name, "arguments": {"x": value}})
        return call_outcome(due, answer(f"<tool_call>{body}</tool_call>"))

    assert [outcome("a"), outcome("b")] == [CallOutcome.EXACT] * 2
    assert [outcome("B"), outcome("c")] == [CallOutcome.EQUAL_BFCL, CallOutcome.ARGUMENTS]
    assert outcome("a", "g") is CallOutcome.FUNCTION
    assert call_outcome(due, answer("no")) is CallOutcome.NO_CALL


@needs_data
def test_a_drop_by_bfcls_rules_fails_the_check_of_that_name(
    suite: tuple[Conversation, ...], reference: Reference
) -> None:
    from dataclasses import replace

    from verify.artifact import Artifact, Kind
    from verify.gate import read_gate

    right = tuple(answer(chosen(conversation)) for conversation in suite)
    lower = tuple(answer(chosen(c).lower() if i % 20 else "No.") for i, c in enumerate(suite))
    base = replace(reference, conversations=suite, prompts=(), answers=right)
    artifact = Artifact(Path("m.gguf"), Kind.GGUF, "Q8_0", 1)
    evidence = Evidence(base, artifact, read_gate(None).of("Q8_0"), lower)
    outcomes = {outcome.check: outcome.verdict for outcome in check_behaviour(evidence)}
    assert outcomes["bfcl"].numbers["margin"] == 0.01
    assert outcomes["bfcl"].numbers["prompts"] == 1240
    exact, loose = outcomes["tool_calls"].numbers["drop"], outcomes["bfcl"].numbers["drop"]
    assert isinstance(exact, float)
    assert isinstance(loose, float)
    assert exact > 0.3 > loose > 0.03
    assert outcomes["bfcl"].state == "fail"
    assert "json_mode" in not_measured(check_behaviour(evidence))


def test_other_suites_are_not_told_that_bfcl_was_not_measured() -> None:
    assert "bfcl" not in not_measured([])
    assert "tool_calls" in not_measured([])


def write_folder(folder: Path, change: Callable[[str, list[dict[str, Any]]], None]) -> Path:
    """A folder of BFCL's shape with made-up prompts; `change` edits the records of a category."""
    (folder / "possible_answer").mkdir(parents=True)
    function = {"name": "m.f", "parameters": {"type": "dict", "properties": {"type": {
        "type": "tuple", "items": {"type": "float"}}}, "required": ["type"]}}  # fmt: skip
    for category, count in CATEGORIES.items():
        ask = [[{"role": "user", "content": "x"}]]
        records: list[dict[str, Any]] = [
            {"id": f"{category}_{i}", "question": ask, "function": [function]} for i in range(count)
        ]
        answers = [{"id": r["id"], "ground_truth": [{"m.f": {"type": [[1.5]]}}]} for r in records]
        change(category, records)
        name = f"BFCL_v4_{category}.json"
        (folder / name).write_text("\n".join(map(json.dumps, records)))
        (folder / "possible_answer" / name).write_text("\n".join(map(json.dumps, answers)))
    return folder


def test_a_parameter_named_type_is_a_parameter(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bfcl", lambda category, records: None)
    _, first = next(read_bfcl(folder))
    assert first.tools[0]["function"] == {"name": "m.f", "parameters": {
        "type": "object", "required": ["type"],
        "properties": {"type": {"type": "array", "items": {"type": "number"}}},
    }}  # fmt: skip
    assert len(read_suite(folder, NANO).conversations) == 1240


def truncated(category: str, records: list[dict[str, Any]]) -> None:
    if category == "parallel":
        records.pop()


def two_turns(category: str, records: list[dict[str, Any]]) -> None:
    records[0]["question"] = records[0]["question"] * 2


def java(category: str, records: list[dict[str, Any]]) -> None:
    records[0]["function"] = [{"name": "m.f", "parameters": {"type": "HashMap"}}]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (truncated, InputError, r"parallel\.json: 199 prompts, expected 200"),
        (two_turns, ConversationError, r"simple_python\.json:1: not a single-turn prompt"),
        (java, ConversationError, "unknown type 'HashMap'"),
    ],
)
def test_what_is_not_bfcl_as_published_is_refused(
    tmp_path: Path, change: Any, kind: type[Exception], message: str
) -> None:
    folder = write_folder(tmp_path / "bfcl", change)
    with pytest.raises(kind, match=message):
        list(read_bfcl(folder))


def test_a_folder_without_its_answers_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "bfcl", lambda category, records: None)
    (folder / "possible_answer" / "BFCL_v4_multiple.json").unlink()
    with pytest.raises(InputError, match="BFCL needs all its files"):
        list(read_bfcl(folder))


def test_unknown_types_are_named_and_known_ones_mapped() -> None:
    assert schema({"type": "any"}) == {"type": "string"}
    with pytest.raises(ValueError, match="'HashMap'"):
        schema({"type": "array", "items": {"type": "HashMap"}})
