"""Suites: where they are read from, and that a limited one is an even sample."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from convert.errors import ConversationError, InputError
from verify.suite import read_suite


def write(path: Path, ids: list[str], tag: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    message = {"role": "user", "content": "hi"}
    lines = [json.dumps({"id": i, "tags": [tag], "messages": [message]}) for i in ids]
    path.write_text("\n".join(lines))
    return path


def test_a_file_a_folder_and_the_references_own(tmp_path: Path) -> None:
    write(tmp_path / "prompts" / "a.jsonl", ["a1", "a2"])
    write(tmp_path / "prompts" / "b.jsonl", ["b1"])
    own = read_suite(None, tmp_path)
    assert [c.id for c in own.conversations] == ["a1", "a2", "b1"]
    assert (own.name, own.available, own.tags) == ("prompts", 3, {"x": 3})
    assert read_suite(tmp_path / "prompts", Path("elsewhere")) == own
    one = read_suite(tmp_path / "prompts" / "b.jsonl", tmp_path)
    assert [c.id for c in one.conversations] == ["b1"]
    assert one.sha256 != own.sha256


def test_a_sample_keeps_every_kinds_share(tmp_path: Path) -> None:
    write(tmp_path / "prompts" / "a.jsonl", [f"a{i}" for i in range(600)], "tools")
    write(tmp_path / "prompts" / "b.jsonl", [f"b{i}" for i in range(300)], "json")
    write(tmp_path / "prompts" / "c.jsonl", [f"c{i}" for i in range(100)], "other")
    sample = read_suite(None, tmp_path, limit=100)
    assert sample.tags == {"json": 30, "other": 10, "tools": 60}
    assert sample == read_suite(None, tmp_path, limit=100)
    ids = Counter(c.id for c in sample.conversations)
    assert max(ids.values()) == 1
    assert len(read_suite(None, tmp_path, limit=5000).conversations) == 1000
    assert len(read_suite(None, tmp_path, limit=1).conversations) == 1


def test_what_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--suite"):
        read_suite(None, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.jsonl file"):
        read_suite(tmp_path / "empty", tmp_path)
    with pytest.raises(ConversationError, match="cannot be read"):
        read_suite(tmp_path / "absent.jsonl", tmp_path)
    path = write(tmp_path / "one.jsonl", ["a"])
    with pytest.raises(InputError, match="at least 1"):
        read_suite(path, tmp_path, limit=0)
    write(tmp_path / "two" / "a.jsonl", ["same"])
    write(tmp_path / "two" / "b.jsonl", ["same"])
    with pytest.raises(ConversationError, match=r"'same' is also in a\.jsonl"):
        read_suite(tmp_path / "two", tmp_path)


@pytest.mark.parametrize("schema", [{"type": "dict"}, {"$ref": "http://127.0.0.1:9/s.json"}])
def test_a_schema_that_can_judge_nothing_is_refused_with_the_conversations_name(
    tmp_path: Path, schema: dict[str, str]
) -> None:
    message = {"role": "user", "content": "hi"}
    due = {"json": 1, "schema": schema}
    whole = {"id": "a", "messages": [message], "expected": due}
    later = {"id": "a", "messages": [message], "then": [{"messages": [message], "expected": due}]}
    for line in (whole, later):
        (tmp_path / "s.jsonl").write_text(json.dumps(line))
        with pytest.raises(ConversationError, match=r"s\.jsonl: conversation 'a': schema is no"):
            read_suite(tmp_path / "s.jsonl", tmp_path)
