"""JSONL of conversations: what is read, and what is refused by file and line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from convert.conversation import Conversation, Expected, ExpectedJson, ToolCall, read_conversations
from convert.errors import ConversationError

USER = {"role": "user", "content": "Weather in Oslo?"}
CALLING = {"role": "assistant", "content": None}
CALL = {"name": "f", "arguments": {}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "suite.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_whole_record_is_read(tmp_path: Path) -> None:
    record = {
        "id": "a",
        "tags": ["single", "held out"],
        "messages": [USER],
        "tools": [TOOL],
        "expected": {"calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]},
    }
    (got,) = read_conversations(write(tmp_path, record))
    assert got == Conversation(
        id="a",
        messages=(USER,),
        tools=(TOOL,),
        expected=Expected(calls=(ToolCall("weather", {"city": "Oslo"}),)),
        tags=("single", "held out"),
    )


def test_every_kind_of_expectation(tmp_path: Path) -> None:
    kinds = [
        {"calls": []},
        {"text": ""},
        {"json": None},
        {"json": {"a": 1}, "schema": {"type": "object"}},
        {"refusal": False, "text": "Done."},
    ]
    records = [{"id": str(i), "messages": [USER], "expected": kind} for i, kind in enumerate(kinds)]
    assert [c.expected for c in read_conversations(write(tmp_path, *records))] == [
        Expected(calls=()),
        Expected(text=""),
        Expected(json=ExpectedJson(None)),
        Expected(json=ExpectedJson({"a": 1}, {"type": "object"})),
        Expected(refusal=False, text="Done."),
    ]


def test_blank_lines_and_line_separators_in_strings(tmp_path: Path) -> None:
    message = {"role": "user", "content": "one\u2028two\u0085three"}
    path = write(tmp_path, {"id": "a", "messages": [message]}, "", {"id": "b", "messages": [USER]})
    assert [c.messages[0]["content"] for c in read_conversations(path)] == [
        "one\u2028two\u0085three",
        "Weather in Oslo?",
    ]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("{", "not one JSON object"),
        ('{"id": "a"} {"id": "b"}', "not one JSON object"),
        ('{"id": "a", "id": "b"}', "'id' appears twice"),
        ('{"id": NaN}', "NaN is not JSON"),
        ('{"id": "\\ud800"}', "half of a surrogate pair"),
        ("[" * 100_000, "not one JSON object"),
        ("9" * 5000, "not one JSON object"),
        ([], "a conversation is a list, expected an object"),
        ({"id": "a"}, "key 'messages' is missing"),
        ({"messages": [USER]}, "key 'id' is missing"),
        ({"id": 7, "messages": [USER]}, "id is a number"),
        ({"id": "", "messages": [USER]}, "id is an empty string"),
        ({"id": "a", "messages": []}, "messages is empty"),
        ({"id": "a", "messages": [USER], "tags": "x"}, "tags is a string, expected a list"),
        ({"id": "a", "messages": [USER], "expect": {}}, "unknown key 'expect'"),
        ({"id": "a", "messages": [USER], "tools": []}, "leave the key out"),
        ({"id": "a", "messages": [USER], "tools": None}, "tools is null"),
        ({"id": "a", "messages": [USER], "tools": [{"type": "function"}]}, "'name' is missing"),
        ({"id": "a", "messages": ["hello"]}, "messages[0]: a message is a string"),
        ({"id": "a", "messages": [{"content": "x"}]}, "'role' is missing"),
        ({"id": "a", "messages": [{"role": "user"}]}, "neither content nor tool_calls"),
        ({"id": "a", "messages": [{"role": "user", "contant": "x"}]}, "unknown key 'contant'"),
        ({"id": "a", "messages": [{"role": "user", "content": ["x"]}]}, "content is a list"),
        (
            {"id": "a", "messages": [CALLING | {"tool_calls": [{"name": "f", "arguments": 1}]}]},
            "tool_calls[0]: arguments is a number",
        ),
        ({"id": "a", "messages": [USER], "expected": {}}, "give at least one"),
        ({"id": "a", "messages": [USER], "expected": {"schema": {}}}, "give at least one"),
        ({"id": "a", "messages": [USER], "expected": {"text": "x", "schema": {}}}, "without json"),
        ({"id": "a", "messages": [USER], "expected": {"refusal": 1}}, "refusal is a number"),
        ({"id": "a", "messages": [USER], "expected": {"text": None}}, "text is null"),
        ({"id": "a", "messages": [USER], "expected": {"calls": [{"name": "f"}]}}, "'arguments'"),
        (
            {"id": "a", "messages": [USER], "expected": {"calls": [CALL | {"arguments": "{}"}]}},
            "arguments is a string, expected an object",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, record: Any, complaint: str) -> None:
    path = write(tmp_path, {"id": "first", "messages": [USER]}, record)
    with pytest.raises(ConversationError) as caught:
        read_conversations(path)
    assert str(caught.value).startswith(f"{path}:2")
    assert complaint in str(caught.value)


def test_a_key_used_twice_among_many_takes_no_hours(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    keys = (f'"k{i}": 1' for i in range(200_000))
    path.write_text("{" + ", ".join([*keys, '"k199999": 2']) + "}\n")
    began = time.process_time()
    with pytest.raises(ConversationError, match="key 'k199999' appears twice"):
        read_conversations(path)
    assert time.process_time() - began < 30  # one count for every key took an hour


def test_an_id_used_twice_names_both_lines(tmp_path: Path) -> None:
    record = {"id": "same", "messages": [USER]}
    with pytest.raises(ConversationError, match=r"suite.jsonl:3: id 'same' was used on line 1"):
        read_conversations(write(tmp_path, record, "", record))


def test_files_that_are_not_suites(tmp_path: Path) -> None:
    with pytest.raises(ConversationError, match="no conversation in it"):
        read_conversations(write(tmp_path, ""))
    with pytest.raises(ConversationError, match="cannot be read"):
        read_conversations(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}')
    with pytest.raises(ConversationError, match="UTF-8"):
        read_conversations(tmp_path / "latin.jsonl")


def test_variables_for_the_template_are_read_and_not_those_that_are_ours(tmp_path: Path) -> None:
    record = {"id": "a", "messages": [USER], "template_kwargs": {"thinking": True, "depth": 2}}
    (got,) = read_conversations(write(tmp_path, record))
    assert got.template_kwargs == {"thinking": True, "depth": 2}
    for name in ("messages", "tools", "add_generation_prompt", "bos_token"):
        with pytest.raises(
            ConversationError, match=f"suite.jsonl:1: template_kwargs sets '{name}'"
        ):
            read_conversations(write(tmp_path, {**record, "template_kwargs": {name: "x"}}))
    with pytest.raises(ConversationError, match="template_kwargs is a list, expected an object"):
        read_conversations(write(tmp_path, {**record, "template_kwargs": []}))
