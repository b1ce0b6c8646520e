"""Log-probabilities by steps: the wire format of llama-server b1-0c1e570, and a real one if any."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from convert.errors import UnsupportedError
from tests.verify.conftest import NANO
from tests.verify.loopback import Answer, loopback
from tests.verify.test_log_probabilities import log_softmax, random_rows, reduced, texts
from verify.artifact import open_artifact
from verify.check import State
from verify.distributions import kl_per_token
from verify.engines import BY_STEPS, LOG_PROBABILITIES
from verify.engines.generated_logprobs import SOFTWARE
from verify.engines.llama_cpp import LlamaCppEngine
from verify.engines.log_probabilities import Passage
from verify.engines.openai_client import ServedModel, find_model
from verify.engines.openai_server import OpenAIEngine
from verify.one_artifact import NO_FLOOR
from verify.verify import verify

BINARY = os.environ.get("HERMES_QUANT_LLAMA_SERVER") or shutil.which("llama-server")
FRAGMENT = 200


def recorded(row: np.ndarray, body: Any) -> Any:
    """What llama-server answers where the next token has log-probabilities `row`."""
    ((forced, bias),) = body["logit_bias"]
    assert bias >= 1e6
    generated = 97 if forced == "a" else forced

    def named(i: int, more: Any) -> Any:
        return {"id": i, "token": "", "bytes": [], "logprob": float(np.float32(row[i])), **more}

    top = [named(i, {}) for i in np.argsort(-row)[: body["n_probs"]].tolist()]
    content = [named(generated, {"top_logprobs": top})]
    whole = None if generated == FRAGMENT else {"content": content}
    choice = {"text": "", "index": 0, "logprobs": whole, "finish_reason": "length"}
    return {"choices": [choice], "object": "text_completion", "usage": {"completion_tokens": 1}}


def test_every_step_is_one_request_and_the_rows_are_the_servers() -> None:
    p, q = random_rows(0), random_rows(0) + 0.3 * random_rows(1)
    q[7, 3] = -300  # of probability 0 in float32, which is sent as -3.4e38
    whole = log_softmax(q)
    whole[whole < -100] = -3.4e38
    ids = (1, 3, *[FRAGMENT if i % 9 == 0 else i for i in range(98)], 5)
    ours = reduced(p, Passage(ids, 1), top=32)
    asked = Passage(ids, 1, ours.candidates)
    exact = kl_per_token(ours, reduced(q, asked, top=32))

    def respond(path: str, body: Any) -> Answer:
        assert path == "/v1/completions"
        assert (body["max_tokens"], body["temperature"], body["cache_prompt"]) == (1, 0, True)
        assert tuple(body["prompt"]) == ids[: len(body["prompt"])]
        return Answer(recorded(whole[len(body["prompt"]) - 1], body))

    with loopback(respond) as server:
        engine = OpenAIEngine(ServedModel(server.url, "m", SOFTWARE, "1"), batch=4)
        assert engine.info.capabilities == {LOG_PROBABILITIES, BY_STEPS}
        (theirs, again) = engine.score([asked, asked], top=32)
        engine.close()
        assert server.most_together == 1, "slots lose their caches to each other"
        fragments = sum(token == FRAGMENT for token in ids[1:])
        assert len(server.seen) == 2 * (len(ids) - 1 + fragments)
    assert np.array_equal(theirs.log_probs, again.log_probs, equal_nan=True)
    whole_token = np.array(ids[1:]) != FRAGMENT
    of_targets = log_softmax(q)[range(100), ids[1:]]
    named = theirs.log_prob_of(theirs.targets)
    assert np.allclose(named[whole_token], np.maximum(of_targets, -104)[whole_token], atol=1e-5)
    assert np.array_equal(theirs.best, np.argsort(-q, axis=1)[:, :2])
    lumped = kl_per_token(ours, theirs)
    assert np.isfinite(lumped).all()
    rest = np.arange(100) != 7
    assert np.all(lumped[rest] <= exact[rest] + 1e-5)
    assert lumped.mean() > 0.8 * exact[rest].mean()
    tail = 1 - np.nansum(np.exp(theirs.log_probs), axis=1)
    assert np.allclose(np.exp(theirs.log_tail), tail, atol=1e-6)


def named(*logprobs: float, first: int = 2) -> Any:
    top = [{"id": i, "logprob": logprob} for i, logprob in enumerate(logprobs, start=first)]
    return {"content": [{"id": 2, "logprob": -1, "top_logprobs": top}]}


@pytest.mark.parametrize(
    "logprobs",
    [None, {}, {"content": []}, {"content": [{"id": 2}]}, {"content": [{"top_logprobs": [{}]}]},
     {"content": {"id": 2}}, {"content": 5}, named(-1), named(-1, 10**400), named(5.0, 4.0),
     named(0.0, 0.0), named(-1, float("nan")), named(-1, -2, first=1 << 70)],
)  # fmt: skip
def test_a_server_that_names_none_says_so(logprobs: Any) -> None:
    with loopback(lambda *_: Answer({"choices": [{"text": "", "logprobs": logprobs}]})) as server:
        engine = OpenAIEngine(ServedModel(server.url, "m", SOFTWARE, "1"))
        with pytest.raises(UnsupportedError, match=r"log-probabilit|fewer than two"):
            engine.score([Passage((1, 2), 1)], top=4)
        engine.close()


def test_the_build_is_the_version() -> None:
    def respond(path: str, _: Any) -> Answer:
        if path == "/v1/models":
            return Answer({"data": [{"id": "m", "owned_by": SOFTWARE}]})
        return Answer({"build_info": "b1-0c1e570"}) if path == "/props" else Answer({}, 404)

    with loopback(respond) as server:
        assert find_model(server.url) == ServedModel(server.url, "m", SOFTWARE, "b1-0c1e570")


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """A real llama-server of a GGUF, in float32 throughout, ended with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--host 127.0.0.1 --port {port} -t 1 -np 2 -ctk f32 -ctv f32 -fa off --no-repack --jinja"
    )
    command = [str(BINARY), "-m", str(path), *options.split()]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, "llama-server ended"
            try:
                if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(BINARY is None, reason="no llama-server: $HERMES_QUANT_LLAMA_SERVER or $PATH")
def test_a_real_llama_server_scores_as_llama_cpp_does(artifacts: dict[str, Path]) -> None:
    """Texts with halves of characters and ends of turns in them: neither is lost, nothing ends."""
    made = [*texts(2, 40), Passage((257, 72, 260, 257, 0xE6, 0x9D, 0xB1, 260, 72), 1)]
    local = LlamaCppEngine(artifacts["F32"], kv_type="float32", threads=1)
    ours = local.score(made, top=48)
    asked = [replace(p, candidates=s.candidates) for p, s in zip(made, ours, strict=True)]
    with serving(artifacts["F32"]) as url:
        artifact = open_artifact(url)
        assert artifact.served is not None
        assert artifact.served.software == SOFTWARE
        assert artifact.served.version != "not stated"
        engine = OpenAIEngine(artifact.served)
        theirs = engine.score(asked, top=48)
        prompts = [list(p.ids[:9]) for p in made]
        stop = frozenset({260})
        same = engine.generate(prompts, max_new_tokens=6, stop_ids=stop)
        engine.close()
    assert same == local.generate(prompts, max_new_tokens=6, stop_ids=stop)
    local.close()
    for a, b in zip(ours, theirs, strict=True):
        assert kl_per_token(a, b).max() < 2e-5
        named = b.log_prob_of(b.targets)
        missing = np.isnan(named)
        assert np.all(b.targets[missing] > 93), "halves of characters: ASCII comes first"
        assert np.allclose(a.log_prob_of(a.targets)[~missing], named[~missing], atol=1e-3)
        assert b.log_probs.shape == (len(a.targets), 48)
        assert np.isnan(b.log_probs).mean() < 0.05
        assert np.array_equal(b.best[:, 0], a.best[:, 0])


@pytest.mark.skipif(BINARY is None, reason="no llama-server: $HERMES_QUANT_LLAMA_SERVER or $PATH")
def test_a_real_llama_server_is_verified_whole_and_can_be_the_reference(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Its own template and parser on conversations, and its answers in place of the weights."""
    folder = Path(
        shutil.copytree(NANO, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    )
    with serving(made["F32"]) as url:
        (served,) = verify(NANO, [url], limit=12, max_new_tokens=96).artifacts
        report = verify(folder, [made["Q8_0"]], reference_server=url, limit=12, max_new_tokens=96)
    found = {outcome.check: outcome for outcome in served.outcomes}
    assert not [o.check for o in served.outcomes if o.verdict.state is State.FAIL]
    numbers = found["served_calls"].verdict.numbers
    assert numbers["with_tools"] == numbers["same_prompt_tokens"] == numbers["same_calls"] == 8
    calls = next(p for p in found["served_calls"].points if p.subject == "tool_calls").values
    assert calls["as served"] == calls["as generated"] == calls["reference"]
    assert found["chat_kl"].verdict.state is State.PASS
    assert report.reference.engine.name == SOFTWARE
    (artifact,) = report.artifacts
    assert artifact.not_checked == ("structure", "gguf_weights", NO_FLOOR)
    found = {outcome.check: outcome for outcome in artifact.outcomes}
    for check in ("noise_floor", "chat_kl", "reply_kl", "log_prob", "long_context"):
        assert found[check].verdict.state is State.PASS, found[check].verdict.reason
    assert found["trigger"].verdict.numbers["with_tools"]
