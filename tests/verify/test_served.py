"""A server's address as an artifact, end to end: right calls pass, other templates are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convert.conversation import ToolCall
from convert.errors import ServerError
from convert.rendering import Tokenizer
from tests.command import invoke
from tests.verify.loopback import Answer, Loopback, loopback
from tests.verify.test_verify import right, scripted, write_gate, write_suite
from verify.artifact import Artifact, Kind, open_artifact
from verify.check import State
from verify.engines import Engine, ServedReply
from verify.engines.opening import open_engine
from verify.evidence import Reference
from verify.one_artifact import CHECKS_OF_FILES
from verify.report.contents import ArtifactReport
from verify.report.terminal import print_report
from verify.served_replies import as_answers
from verify.verify import verify

MODEL = "/models/hermes-FP8"
Respond = Callable[[str, Any], Answer]


def number_of(text: str) -> int:
    return int(text.split("call f with ")[1].split("<")[0])


def served(folder: Path, *, extra_prompt_tokens: int = 0, shift: float = 0) -> Respond:
    """A faithful server of the reference in `folder`, apart from what is asked for."""
    tokenizer = Tokenizer.open(folder)

    def respond(path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return Answer({"data": [{"id": MODEL, "owned_by": "vllm"}]})
        if path == "/version":
            return Answer({"version": "9"})
        if path == "/v1/completions":
            ids = tokenizer.encode(right(number_of(tokenizer.decode(body["prompt"]))))
            choice = {"text": "", "token_ids": ids}
            return Answer({"choices": [choice], "usage": {"completion_tokens": len(ids)}})
        i = number_of(body["messages"][-1]["content"] + "<")
        function = {"name": "f", "arguments": json.dumps({"x": i + shift})}
        calls = [{"id": "a", "type": "function", "function": function}]
        usage = {"prompt_tokens": lengths[i] + extra_prompt_tokens} if i in lengths else {}
        return Answer({"choices": [{"message": {"tool_calls": calls}}], "usage": usage})

    lengths: dict[int, int] = {}
    inner = respond

    def remembering(path: str, body: Any) -> Answer:
        if path == "/v1/completions":
            lengths[number_of(tokenizer.decode(body["prompt"]))] = len(body["prompt"])
        return inner(path, body)

    return remembering


@pytest.fixture
def run(reference_folder: Path, tmp_path: Path) -> Callable[..., ArtifactReport]:
    """Verify a loopback server by its address; the reference itself is scripted."""

    def verify_one(respond: Respond, count: int = 60, equality: str = "json") -> ArtifactReport:
        reference = scripted(reference_folder, {Kind.CHECKPOINT: right})

        def choose(artifact: Artifact) -> Engine:
            return open_engine(artifact) if artifact.served else reference(artifact)

        with loopback(respond) as server:
            report = verify(
                reference_folder,
                [server.url],
                suite=write_suite(tmp_path, count),
                gate=write_gate(tmp_path, equality=equality),
                open_engine=choose,
            )
            text = json.dumps(report.to_dict(), allow_nan=False)
            assert server.url not in text
            assert "/models" not in text
        console = Console(record=True, width=100, file=(tmp_path / "out").open("w"))
        print_report(report, console)
        shown = " ".join(console.export_text().split())
        assert "of its files nothing is known: no structure, tokens, templates" in shown
        return report.artifacts[0]

    return verify_one


def outcome(report: ArtifactReport, name: str) -> Any:
    return next(outcome for outcome in report.outcomes if outcome.check == name)


@pytest.mark.parametrize(("equality", "state"), [("json", State.FAIL), ("numeric", State.PASS)])
def test_a_server_is_held_to_the_tier_of_the_gate(
    run: Callable[..., ArtifactReport], reference_folder: Path, equality: str, state: State
) -> None:
    """Its template or parser makes 1.0 of every 1."""
    found = outcome(run(served(reference_folder, shift=0.0), equality=equality), "served_calls")
    assert (found.verdict.state, found.verdict.numbers["equality"]) == (state, equality)


def test_a_faithful_server_passes_and_its_files_are_not_vouched_for(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    report = run(served(reference_folder))
    assert (report.name, report.kind, report.type) == ("hermes-FP8", "server", "served")
    assert report.state is State.PASS
    assert {"agreement", "tool_calls", "served_calls"} <= {o.check for o in report.outcomes}
    assert not {o.check for o in report.outcomes} & {*CHECKS_OF_FILES, "gguf_weights"}
    assert report.not_checked == (*CHECKS_OF_FILES, "weights")
    assert report.engine is not None
    assert (report.engine.name, report.engine.version) == ("vllm", "9")
    numbers = outcome(report, "served_calls").verdict.numbers
    assert (numbers["same_calls"], numbers["compared"], numbers["with_tools"]) == (54, 54, 54)
    assert numbers["same_prompt_tokens"] == 54
    assert outcome(report, "agreement").verdict.numbers["same_text"] == 60


def test_what_is_not_checked_of_a_server_is_what_is_checked_of_a_file(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    engines = scripted(reference_folder, {Kind.CHECKPOINT: right, Kind.GGUF: right})
    suite = write_suite(tmp_path, 2)
    report = verify(reference_folder, [artifacts["Q8_0"]], suite=suite, open_engine=engines)
    names = tuple(found.check for found in report.artifacts[0].outcomes)
    assert names[: len(CHECKS_OF_FILES)] == CHECKS_OF_FILES
    assert report.artifacts[0].not_checked == ()


def test_a_parser_that_finds_other_calls_fails_though_the_weights_agree(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    report = run(served(reference_folder, shift=1))
    assert outcome(report, "agreement").verdict.state is State.PASS
    found = outcome(report, "served_calls")
    assert (found.verdict.state, report.state) == (State.FAIL, State.FAIL)
    assert found.findings[0].subject == "p0"


def test_another_template_is_named(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    found = outcome(run(served(reference_folder, extra_prompt_tokens=3)), "served_calls")
    assert found.verdict.state is State.PASS
    assert found.verdict.numbers["same_prompt_tokens"] == 0
    assert "54 of its prompts are not the reference's" in found.verdict.reason
    assert "another template or tokenizer" in found.findings[0].message


def test_a_server_without_a_tool_parser_leaves_the_rest_standing(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    usual = served(reference_folder)
    refused = Answer({"error": {"message": "auto tool choice requires a parser"}}, 400)
    report = run(lambda path, body: refused if "chat" in path else usual(path, body))
    assert outcome(report, "agreement").verdict.state is State.PASS
    assert outcome(report, "served_calls").verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "requires a parser" in outcome(report, "served_calls").verdict.reason
    assert report.state is State.NOT_ENOUGH_EVIDENCE


def test_a_server_that_dies_is_no_verdict_on_the_model(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    usual = served(reference_folder)
    dead = Answer({"error": {"message": "engine died"}}, 500)
    report = run(lambda path, body: dead if path.endswith("ions") else usual(path, body))
    assert [found.check for found in report.outcomes] == ["agreement"]
    assert report.state is State.NOT_ENOUGH_EVIDENCE
    assert "engine died" in report.outcomes[0].verdict.reason
    assert report.scores is None


def test_the_command_line_takes_an_address(reference_folder: Path, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, 2)

    def wrong(server: Loopback) -> str:
        done = invoke("verify", reference_folder, f"{server.url}#other", "--suite", suite)
        assert done.exit_code == 2
        return done.stderr

    with loopback(served(reference_folder)) as server:
        assert wrong(server) == f"error: {server.url}: serves no model 'other'; it serves {MODEL}\n"
        assert open_artifact(server.url).kind is Kind.SERVER
    with pytest.raises(ServerError, match="cannot be reached"):
        verify(reference_folder, [server.url], suite=suite)


def without_ids(folder: Path, **changes: Any) -> Respond:
    """A server that talks and gives no token ids, as Ollama and hosted ones."""
    usual = served(folder, **changes)
    tokenizer = Tokenizer.open(folder)

    def respond(path: str, body: Any) -> Answer:
        if path == "/v1/completions":
            usual(path, body)
            return Answer({"choices": [{"text": "text alone"}]})
        if path == "/v1/chat/completions" and "tools" not in body:
            content = tokenizer.decode(tokenizer.encode("Of course."))
            return Answer({"choices": [{"message": {"content": content}}]})
        return usual(path, body)

    return respond


def test_a_server_without_token_ids_is_judged_by_what_it_says(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    report = run(without_ids(reference_folder))
    states = {o.check: o.verdict.state for o in report.outcomes}
    assert states.pop("agreement") is State.NOT_ENOUGH_EVIDENCE
    assert report.state is State.NOT_ENOUGH_EVIDENCE
    assert {"served_calls", "tool_calls", "lost_calls", "malformed_calls"} <= {*states}
    assert {*states.values()} == {State.PASS}
    assert "gives no token ids" in outcome(report, "agreement").verdict.reason
    for name in ("tool_calls", "served_calls"):
        assert "as served, perhaps constrained" in outcome(report, name).verdict.reason
    assert report.not_checked == (*CHECKS_OF_FILES, "weights", "portability", "log_probabilities")
    assert report.unchecked[1] == "not checked: portability, log_probabilities"
    assert "portability" not in report.not_measured
    assert report.scores is not None
    assert report.scores.kinds["calls"].hits == 54
    assert report.differences == ()


def test_a_server_without_token_ids_can_fail(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    report = run(without_ids(reference_folder, shift=1))
    assert outcome(report, "served_calls").verdict.state is State.FAIL
    assert outcome(report, "tool_calls").verdict.state is State.FAIL
    assert report.state is State.FAIL


def test_a_server_that_neither_names_tokens_nor_chats_leaves_too_little(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    mute = without_ids(reference_folder)
    refused = Answer({"error": {"message": "no chat here"}}, 404)
    report = run(lambda path, body: refused if "chat" in path else mute(path, body))
    assert [o.check for o in report.outcomes] == ["agreement", "served_calls"]
    assert report.state is State.NOT_ENOUGH_EVIDENCE
    assert "no chat here" in outcome(report, "served_calls").verdict.reason


def test_what_a_constraint_hides_stands_beside_what_it_shows(
    run: Callable[..., ArtifactReport], reference_folder: Path
) -> None:
    """Weights that write calls in Python's notation, behind a server whose grammar allows JSON."""
    usual, tokenizer = served(reference_folder), Tokenizer.open(reference_folder)

    def respond(path: str, body: Any) -> Answer:
        answer = usual(path, body)
        if path == "/v1/completions":
            choice = answer.body["choices"][0]
            text = tokenizer.decode(choice["token_ids"]).replace('"', "'")
            choice["token_ids"] = tokenizer.encode(text)
            answer.body["usage"]["completion_tokens"] = len(choice["token_ids"])
        return answer

    report = run(respond)
    assert outcome(report, "served_calls").verdict.state is State.PASS
    assert outcome(report, "malformed_calls").verdict.state is State.FAIL
    points = {point.subject: point.values for point in outcome(report, "served_calls").points}
    assert points["malformed_calls"] == {
        "prompts": 54, "reference": 54, "as generated": 0, "as served": 54,
    }  # fmt: skip
    assert points["tool_calls"]["as served"] == 54


def test_a_call_left_in_the_text_is_malformed_and_reasoning_is_not_the_answer(
    reference: Reference,
) -> None:
    call = right(1).removesuffix("<|im_end|>")
    one = replace(reference, prompts=reference.prompts[:1])
    for text, calls in ((call, ()), ("<think>hm</think>" + "ok", (ToolCall("f", {}),))):
        (found,) = as_answers(one, [ServedReply(calls, (), text, None)])
        assert found.reply.calls == calls
        assert bool(found.reply.malformed) is (text == call)
        assert found.reply.text == ("" if text == call else "ok")
    opens = tuple(reference.tokenizer.encode("<|im_start|>assistant\n<think>\n"))
    begun = replace(reference, prompts=(opens,))
    for reply, text in (
        (ServedReply((), (), "hm</think>ok", None), "ok"),
        (ServedReply((), (), "ok", None, reasoning="hm"), "ok"),
        (ServedReply((), (), "ok", None), "ok"),
        (ServedReply((), (), "hm", None, finished=False), ""),
    ):
        (found,) = as_answers(begun, [reply])
        assert found.reply.text == text
        assert found.reply.unfinished is (text == "")
