"""The reply parser: what is valid, what is recovered, what is lost, and in how much time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.conversation import ToolCall
from verify.tool_calls import compare_calls, opened_reasoning, parse_reply

CALL = '{"name": "f", "arguments": {"x": 1}}'
F1 = ToolCall("f", {"x": 1})
G = ToolCall("g", {})


def block(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "calls", "outside"),
    [
        (block(CALL), [F1], ""),
        ("<tool_call>" + CALL + "</tool_call>", [F1], ""),
        (block('{"arguments": {"x": 1}, "name": "f"}'), [F1], ""),
        (block(CALL) + "\n" + block('{"name": "g", "arguments": {}}'), [F1, G], ""),
        (block(CALL) + block(CALL), [F1, F1], ""),
        ("First.\n" + block(CALL) + "\nThen.", [F1], "First.\n\nThen."),
        (block(CALL) + "<|im_end|>", [F1], "<|im_end|>"),
        (CALL, [], CALL),
        ("Nothing to call.", [], "Nothing to call."),
        ("", [], ""),
        (
            block('{"name": "f", "arguments": {"name": "</tool_call>"}}'),
            [ToolCall("f", {"name": "</tool_call>"})],
            "",
        ),
        (
            block('{"name": "f", "arguments": {"x": "<tool_call> & {\\"} \\\\"}}'),
            [ToolCall("f", {"x": '<tool_call> & {"} \\'})],
            "",
        ),
        (block('{"name": "g", "arguments": {}}'), [G], ""),
        (
            block('{"arguments": {"name": "g", "arguments": {}}, "name": "f"}'),
            [ToolCall("f", {"name": "g", "arguments": {}})],
            "",
        ),
        ("<tool_call>\r\n" + CALL + "\r\n</tool_call>\r\n", [F1], ""),
        (
            block('{"name": "f", "arguments": {"x": "\\ud800"}}'),
            [ToolCall("f", {"x": "\ud800"})],
            "",
        ),
        (
            block('{"name": "f", "arguments": {"x": ' + "7" * 4300 + "}}"),
            [ToolCall("f", {"x": int("7" * 4300)})],
            "",
        ),
        (block('{"name": "nobody", "arguments": {}}'), [ToolCall("nobody", {})], ""),
        (
            block('{"name": "f", "arguments": {"x": "\\u00e9 é", "y": [1.0, -2e3, true, null]}}'),
            [ToolCall("f", {"x": "é é", "y": [1.0, -2000.0, True, None]})],
            "",
        ),
    ],
)
def test_valid(text: str, calls: list[ToolCall], outside: str) -> None:
    reply = parse_reply(text)
    assert list(reply.calls) == calls
    assert (reply.recovered, reply.malformed, reply.text) == ((), (), outside)


@pytest.mark.parametrize(
    ("text", "calls", "reason"),
    [
        (block("{'name': 'f', 'arguments': {'x': 1}}"), [F1], "Python notation"),
        (block('{"name": "f", "arguments": {"x": True}}'), [ToolCall("f", {"x": True})], "Python"),
        (block('{"name": "f", "arguments": {"x": 1,},}'), [F1], "trailing comma"),
        (
            block('{"name": "f", "arguments": {"x": "a\nb"}}'),
            [ToolCall("f", {"x": "a\nb"})],
            "raw line break",
        ),
        ("<tool_call>\n" + CALL, [F1], "closing tag is missing"),
        (
            "<tool_call>\n" + CALL + "\n" + block('{"name": "g", "arguments": {}}'),
            [F1],
            "closing tag",
        ),
        (block(CALL[:-1]), [F1], "closing bracket"),
        (block(CALL + "}"), [F1], "text around"),
        (block(CALL + "\n" + '{"name": "g", "arguments": {}}'), [F1, G], "several objects"),
        (block(f'[{CALL}, {{"name": "g", "arguments": {{}}}}]'), [F1, G], "list of calls"),
        (block(f"```json\n{CALL}\n```"), [F1], "code fence"),
        (block('{"name": "f", "arguments": "{\\"x\\": 1}"}'), [F1], "arguments are text"),
        (block('{"name": "f", "parameters": {"x": 1}}'), [F1], '"parameters"'),
        (block('{"name": "g"}'), [G], "arguments are missing"),
        (block('{"name": "f", "arguments": {"x": 1}, "id": 7}'), [F1], "unknown key 'id'"),
        (block('{"name": "f", "arguments": {"x": 2, "x": 1}}'), [F1], "twice"),
    ],
)
def test_recovered(text: str, calls: list[ToolCall], reason: str) -> None:
    reply = parse_reply(text)
    assert list(reply.recovered) == calls
    assert any(reason in flaw for flaw in reply.malformed), reply.malformed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": "abc', "not JSON: lost"),
        (block('{"name": "f", "arguments": {"x": NaN}}'), "not JSON: lost"),
        (block('{"name": "f", "arguments": {"x": -Infinity}}'), "not JSON: lost"),
        (block('{"name": "f", "arguments": {"x": 1e400}}'), "not JSON: lost"),
        (block('{"name": "f", "arguments": {"x": ' + "7" * 4301 + "}}"), "not JSON: lost"),
        (block("call f with x = 1"), "not JSON: lost"),
        (block(""), "nothing between"),
        (block("{}"), "no function name"),
        (block('{"name": 7, "arguments": {}}'), "no function name"),
        (block('{"name": "f", "arguments": 7}'), "not an object"),
        (block('{"name": "f", "arguments": ' + "[" * 100 + "]" * 100 + "}"), "lost"),
        ("so </tool_call> what", "closing tag without"),
        ("<think>" + block(CALL) + "</think>no", "inside <think>"),
        ("<scratch_pad>" + block(CALL), "inside <scratch_pad>"),
    ],
)
def test_lost(text: str, reason: str) -> None:
    reply = parse_reply(text)
    assert (reply.calls, reply.recovered) == ((), ())
    assert any(reason in flaw for flaw in reply.malformed), reply.malformed


def test_a_bad_call_costs_its_neighbours_nothing() -> None:
    for bad in (block("oops"), '<tool_call>{"name": "h", "arg', block('{"name": "h", "x": "1}}')):
        assert F1 in parse_reply(bad + block(CALL)).calls
        assert F1 in parse_reply(block(CALL) + bad).calls


def test_reasoning_comes_first_and_is_no_part_of_the_text() -> None:
    reply = parse_reply("<think>maybe f</think>\n" + block(CALL))
    assert (reply.calls, reply.reasoning, reply.text) == ((F1,), "maybe f", "")
    assert parse_reply("I said <think>x</think>").reasoning == ""


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["<tool_call>", "</tool_call>", '"', "\\", "{}", "</think>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=3), st.booleans())
def test_what_is_written_is_read(arguments: list[dict[str, Any]], ascii_only: bool) -> None:
    calls = [ToolCall(f"f{i}", a) for i, a in enumerate(arguments)]
    text = "\n".join(
        block(json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=ascii_only))
        for c in calls
    )
    reply = parse_reply(text)
    assert reply.malformed == ()
    assert compare_calls(calls, reply.calls)


PIECES = [
    "<tool_call>", "</tool_call>", '{"', "{", "}", "[", '"', "\\", '\\"', "'", ",", ":", CALL, " ",
    "```", "<think>", "</think>", "True", '{"a":', '<tool_call>{"a":"', '<tool_call>{\\"', "é",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_any_text_is_a_reply(pieces: list[str]) -> None:
    reply = parse_reply("".join(pieces))
    assert compare_calls(reply.calls, reply.calls)
    assert bool(reply.malformed) or not reply.recovered


@pytest.mark.parametrize("unit", [*PIECES, '<tool_call>{"\\"', '<tool_call>{"a<tool_call>{":"'])
def test_time_is_linear_on_hostile_text(unit: str) -> None:
    for start in ("", "<tool_call>", '<tool_call>{"', "<tool_call>{'"):
        begin = time.process_time()
        parse_reply(start + unit * (100_000 // len(unit)))
        assert time.process_time() - begin < 3, (start, unit)


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ({"x": 1, "y": 2}, {"y": 2, "x": 1}, True),
        ({"x": 1}, {"x": 1.0}, False),
        ({"x": 1}, {"x": True}, False),
        ({"x": 1}, {"x": "1"}, False),
        ({"x": 0}, {"x": False}, False),
        ({"x": None}, {}, False),
        ({"x": [1, 2]}, {"x": [2, 1]}, False),
        ({"x": 100.0}, {"x": 1e2}, True),
        ({"x": "é"}, {"x": "e\u0301"}, False),
        ({"x": 12345678901234567890}, {"x": 12345678901234567891}, False),
    ],
)
def test_argument_equality(ours: dict[str, Any], theirs: dict[str, Any], same: bool) -> None:
    assert compare_calls([ToolCall("f", ours)], [ToolCall("f", theirs)]) is same


def test_calls_are_compared_in_any_order_but_counted() -> None:
    assert compare_calls([F1, G], [G, F1])
    assert not compare_calls([F1, F1], [F1])
    assert not compare_calls([F1], [ToolCall("F", {"x": 1})])
    assert compare_calls([], [])


def test_reasoning_that_the_prompt_opens_is_reasoning_and_a_thought_call_no_call() -> None:
    thought = 'maybe <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n</think>\n\n'
    text = thought + block(CALL)
    assert len(parse_reply(text).calls) == 2, "without the word, a call that was only thought"
    reply = parse_reply(text, "think")
    assert (reply.calls, reply.answer_start) == ((F1,), len(thought) - 2)
    assert reply.reasoning.startswith("maybe")
    assert reply.malformed == ("a call inside <think>: not made",)
    for written in ("<think>hm</think>" + block(CALL), "hm</think>" + block(CALL)):
        again = parse_reply(written, "think")
        assert (again.calls, again.reasoning, again.malformed) == ((F1,), "hm", ())
    cut = parse_reply(block(CALL), "think")
    assert (cut.calls, cut.unfinished) == ((), True)
    two = parse_reply("a</think><scratch_pad>b</scratch_pad>c", "think")
    assert (two.reasoning, two.text) == ("a\nb", "c")


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [("a<think>\n", "think"), ("<scratch_pad>", "scratch_pad"), ("<think>\n\n</think>\n", ""),
     ("assistant\n", ""), ("<think> now", "")],
)  # fmt: skip
def test_what_a_prompt_opens_is_the_tag_at_its_end(prompt: str, opened: str) -> None:
    assert opened_reasoning(prompt) == opened
