"""A server's address as an artifact, end to end: right calls pass, other templates are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convert.errors import ServerError
from convert.rendering import Tokenizer
from tests.command import invoke
from tests.verify.loopback import Answer, Loopback, loopback
from tests.verify.test_verify import right, scripted, write_gate, write_suite
from verify.artifact import Artifact, Kind, open_artifact
from verify.check import State
from verify.engines import Engine
from verify.engines.opening import open_engine
from verify.one_artifact import CHECKS_OF_FILES
from verify.report.contents import ArtifactReport
from verify.report.terminal import print_report
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
        usage = {"prompt_tokens": lengths[i] + extra_prompt_tokens}
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
