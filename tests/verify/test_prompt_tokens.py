"""The fixture of prompt-token counts: what a right endpoint counts, and each way to count wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.conversation import parse_conversation
from convert.errors import InputError
from convert.rendering import render
from tests.command import invoke
from tests.verify.loopback import Answer, Loopback, loopback
from verify.check import State
from verify.evidence import Reference
from verify.prompt_tokens import replay, write_fixture

Change = Callable[[dict[str, Any]], dict[str, Any]]
MODELS = {"data": [{"id": "mini", "owned_by": "vllm"}]}


@pytest.fixture
def fixture(reference: Reference, tmp_path: Path) -> Path:
    path = tmp_path / "prompt-tokens.jsonl"
    write_fixture(reference, path)
    return path


def server(reference: Reference, change: Change = dict, extra: int = 0) -> Any:
    """A server that renders what it is sent with the reference's own template and counts."""

    def respond(path: str, body: Any) -> Answer:
        if path.endswith("/models"):
            return Answer(MODELS)
        if not path.endswith("/chat/completions"):
            return Answer({"error": "no"}, status=404)
        sent = change({key: body[key] for key in ("messages", "tools") if key in body})
        sent |= {"template_kwargs": body.get("chat_template_kwargs", {})}
        conversation = parse_conversation({"id": "x", **sent}, "request")
        count = len(render(reference.tokenizer, conversation)) + extra
        choice = {"message": {"role": "assistant", "content": "x"}}
        return Answer({"choices": [choice], "usage": {"prompt_tokens": count}})

    return loopback(respond)


def test_a_right_endpoint_counts_what_the_fixture_says(reference: Reference, fixture: Path) -> None:
    running: Loopback
    with server(reference) as running:
        outcome = replay(fixture, running.url)
    assert outcome.verdict.state is State.PASS
    assert outcome.verdict.numbers == {"requests": 3, "differing": 0, "not_stated": 0}
    bodies = [body for path, _, body in running.seen if path.endswith("/chat/completions")]
    assert all(body["model"] == "mini" and body["max_tokens"] == 1 for body in bodies)


def without_tools(sent: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sent.items() if key != "tools"}


def with_system_text(sent: dict[str, Any]) -> dict[str, Any]:
    return {**sent, "messages": [{"role": "system", "content": "Be kind."}, *sent["messages"]]}


@pytest.mark.parametrize(
    ("change", "extra"),
    [(dict, 1), (without_tools, 0), (with_system_text, 0)],
    ids=["a second BOS", "tools dropped", "a system text added"],
)
def test_an_endpoint_that_renders_otherwise_fails(
    reference: Reference, fixture: Path, change: Change, extra: int
) -> None:
    with server(reference, change, extra) as running:
        outcome = replay(fixture, running.url)
    assert outcome.verdict.state is State.FAIL
    assert [finding.subject for finding in outcome.findings] == ["c0", "c1", "c2"]
    assert f"expected {len(reference.prompts[0])}" in outcome.findings[0].message


def test_a_server_that_states_no_usage_decides_nothing(fixture: Path) -> None:
    def respond(path: str, body: Any) -> Answer:
        return Answer(MODELS if path.endswith("/models") else {"choices": [{}]})

    with loopback(respond) as running:
        outcome = replay(fixture, running.url)
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.verdict.numbers["not_stated"] == 3


def test_a_line_holds_all_that_is_needed_to_replay_it_by_hand(
    reference: Reference, fixture: Path
) -> None:
    lines = [json.loads(line) for line in fixture.read_text(encoding="utf-8").splitlines()]
    assert [line["prompt_tokens"] for line in lines] == [len(p) for p in reference.prompts]
    first = lines[0]
    assert first["request"]["messages"] == [{"role": "user", "content": "hello"}]
    assert first["request"]["tools"] == [{"type": "function", "function": {"name": "f"}}]
    ids = json.dumps(list(reference.prompts[0])).encode()
    assert first["ids_sha256"] == hashlib.sha256(ids).hexdigest()


def test_a_large_suite_is_sampled(reference: Reference, tmp_path: Path) -> None:
    many = tuple(replace(reference.conversations[0], id=f"m{i}") for i in range(1000))
    write_fixture(
        replace(reference, conversations=many, prompts=(reference.prompts[0],) * 1000),
        tmp_path / "f.jsonl",
    )
    assert len((tmp_path / "f.jsonl").read_text().splitlines()) == 200


@pytest.mark.parametrize("line", ["", "{", '{"request": {}}', '{"request": 1, "prompt_tokens": 1}'])
def test_what_is_no_fixture_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "f.jsonl").write_text(line)
    with pytest.raises(InputError, match=r"f\.jsonl"):
        replay(tmp_path / "f.jsonl", "http://127.0.0.1:9/v1")


def test_command_line(reference: Reference, fixture: Path) -> None:
    with server(reference) as running:
        done = invoke("replay", fixture, running.url)
        assert (done.exit_code, done.stdout.split(":")[0]) == (0, "pass")
    with server(reference, extra=1) as running:
        done = invoke("replay", fixture, running.url, "--json")
        assert done.exit_code == 1
        assert json.loads(done.stdout)["verdict"]["state"] == "fail"
        assert invoke("replay", fixture, running.url).stdout.count("expected") == 3


def test_what_a_conversation_gives_its_template_is_in_the_request(
    reference: Reference, tmp_path: Path
) -> None:
    given = tuple(replace(c, template_kwargs={"thinking": True}) for c in reference.conversations)
    write_fixture(replace(reference, conversations=given), tmp_path / "fixture.jsonl")
    for line in (tmp_path / "fixture.jsonl").read_text().splitlines():
        assert json.loads(line)["request"]["chat_template_kwargs"] == {"thinking": True}
