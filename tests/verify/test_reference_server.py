"""A reference that a server answers for: without its weights, and nothing passed unseen."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convert.errors import CheckpointError, InputError, ServerError
from tests.command import invoke
from tests.verify.loopback import Answer, Loopback, loopback
from tests.verify.test_verify import write_gate, write_suite
from verify.check import State
from verify.engines.llama_cpp import LlamaCppEngine
from verify.engines.log_probabilities import Passage
from verify.engines.prompt_logprobs import SERVED_TOP
from verify.one_artifact import NO_FLOOR
from verify.report.contents import Report
from verify.report.html import render_html
from verify.report.terminal import print_report
from verify.verify import verify

TOKENS = 6
COUNT = 44


@contextmanager
def serving(gguf: Path, scores: bool = True) -> Iterator[Loopback]:
    """A server of real weights that speaks as vLLM does: token ids, and prompt_logprobs."""
    engine, lock = LlamaCppEngine(gguf, kv_type="float32", threads=1, batch=1), threading.Lock()

    def respond(path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return Answer({"data": [{"id": "/models/big", "owned_by": "vllm"}]})
        if path == "/version":
            return Answer({"version": "9"})
        with lock:
            if "prompt_logprobs" in body:
                return Answer(named(body["prompt"])) if scores else Answer({"error": "full"}, 500)
            stops = frozenset(body["stop_token_ids"])
            (ids,) = engine.generate(
                [body["prompt"]], max_new_tokens=body["max_tokens"], stop_ids=stops
            )
        usage = {"completion_tokens": len(ids)}
        return Answer({"choices": [{"text": "", "token_ids": ids}], "usage": usage})

    def named(ids: list[int]) -> Any:
        (found,) = engine.score([Passage(tuple(ids), 1)], top=SERVED_TOP)
        rows: list[Any] = [None]
        for names, values in zip(found.candidates.tolist(), found.log_probs.tolist(), strict=True):
            order = sorted(zip(values, names, strict=True), reverse=True)
            rows.append({str(i): {"logprob": v, "rank": r} for r, (v, i) in enumerate(order, 1)})
        return {"choices": [{"text": "", "prompt_logprobs": rows}]}

    try:
        with loopback(respond) as server:
            yield server
    finally:
        engine.close()


@pytest.fixture
def bare(reference_folder: Path, tmp_path: Path) -> Path:
    """The reference's folder, of which the weights are elsewhere."""
    return Path(
        shutil.copytree(
            reference_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
        )
    )


@pytest.fixture
def run(artifacts: dict[str, Path], tmp_path: Path) -> Callable[..., Report]:
    def verify_one(folder: Path, scores: bool = True, target: str = "F32") -> Report:
        with serving(artifacts["F32"], scores) as server:
            report = verify(
                folder, [artifacts[target]], reference_server=server.url,
                suite=write_suite(tmp_path, COUNT), gate=write_gate(tmp_path),
                max_new_tokens=TOKENS, cache=tmp_path / "cache",
            )  # fmt: skip
            text = json.dumps(report.to_dict(), allow_nan=False) + render_html(report)
            assert server.url not in text
        return report

    return verify_one


def test_a_folder_without_weights_is_enough_and_what_needs_them_is_named(
    run: Callable[..., Report], bare: Path, tmp_path: Path
) -> None:
    report = run(bare)
    (artifact,) = report.artifacts
    found = {outcome.check: outcome.verdict for outcome in artifact.outcomes}
    assert artifact.not_checked == ("structure", "gguf_weights", NO_FLOOR)
    assert not {*artifact.not_checked} & {*found}
    assert list(found)[:4] == ["tokens", "templates", "rendering", "agreement"]
    assert found["agreement"].numbers["same_text"] >= COUNT - 2
    for check in ("chat_kl", "reply_kl", "log_prob", "long_context"):
        assert found[check].state is State.PASS, found[check].reason
    assert found["chat_kl"].numbers["kl_prompts"] == 24
    assert report.reference.name == "bare"
    assert (report.reference.engine.name, report.reference.engine.device) == ("vllm", "server")
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"))
    print_report(report, console)
    for text in (console.export_text(), render_html(report)):
        shown = " ".join(text.replace("&#39;", "'").split())
        assert "not checked without the reference's weights: structure, gguf_weights" in shown
        assert f"not checked: {NO_FLOOR}" in shown


def test_its_answers_are_not_kept_and_the_artifact_s_are(
    run: Callable[..., Report], bare: Path, tmp_path: Path
) -> None:
    run(bare)
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {name.partition("-")[0] for name in kept} == {"answers", "scores"}, (
        "the artifact's alone"
    )
    run(bare)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == kept


def test_with_the_weights_beside_it_the_files_are_checked_too(
    run: Callable[..., Report], reference_folder: Path
) -> None:
    (artifact,) = run(reference_folder, target="FP8_DYNAMIC").artifacts
    assert artifact.not_checked == (NO_FLOOR,)
    assert {"structure", "weights"} <= {outcome.check for outcome in artifact.outcomes}


def test_a_server_that_gives_no_log_probabilities_costs_only_those(
    run: Callable[..., Report], bare: Path
) -> None:
    (artifact,) = run(bare, scores=False).artifacts
    found = {outcome.check: outcome.verdict for outcome in artifact.outcomes}
    assert found["log_probabilities"].state is State.NOT_ENOUGH_EVIDENCE
    assert "the reference" in found["log_probabilities"].reason
    assert artifact.state is State.NOT_ENOUGH_EVIDENCE
    assert found["agreement"].numbers["same_text"] == found["agreement"].numbers["conversations"]
    assert "is cut off before it ends" in found["agreement"].reason


def test_what_is_no_reference_is_one_line(
    bare: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    suite, made = write_suite(tmp_path, 2), [artifacts["Q8_0"]]
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        verify(bare, made, suite=suite)
    with pytest.raises(ServerError, match="cannot be reached"):
        verify(bare, made, suite=suite, reference_server="http://127.0.0.1:9/v1")
    with pytest.raises(InputError, match="no address; expected one like"):
        verify(bare, made, suite=suite, reference_server=str(artifacts["Q8_0"]))
    with pytest.raises(InputError, match=r"the reference is a folder .* --reference-server"):
        verify("http://127.0.0.1:9/v1", made, suite=suite)


def test_the_command_line_takes_it(bare: Path, artifacts: dict[str, Path], tmp_path: Path) -> None:
    with serving(artifacts["F32"]) as server:
        done = invoke(
            "verify", bare, artifacts["Q8_0"], "--reference-server", server.url, "--json",
            "--suite", write_suite(tmp_path, 4), "--max-new-tokens", 4, "--cache", tmp_path / "c",
        )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert json.loads(done.stdout)["reference"]["engine"]["name"] == "vllm"
