"""Engines' log-probabilities against whole rows computed otherwise; lumped KL against the whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.errors import UnsupportedError
from tests.verify.loopback import Answer, loopback
from verify.distributions import kl_per_token, trigger_margin
from verify.engines import LOG_PROBABILITIES, ScoringEngine
from verify.engines.llama_cpp import LlamaCppEngine
from verify.engines.log_probabilities import Passage, Reduction, Scored
from verify.engines.openai_client import ServedModel
from verify.engines.openai_server import OpenAIEngine
from verify.engines.transformers import TransformersEngine

VOCAB = 320


def texts(count: int, length: int = 90) -> list[Passage]:
    rng = random.Random(7)
    made = []
    for number in range(count):
        ids = (257, *(rng.randrange(256) for _ in range(length + 13 * number)))
        made.append(Passage(ids, 1 if number % 2 else length // 2))
    return made


def reduced(logits: np.ndarray, passage: Passage, **options: Any) -> Scored:
    reduction = Reduction(passage, **options)
    reduction.add(logits[: len(logits) // 3].astype(np.float32))
    reduction.add(logits[len(logits) // 3 :].astype(np.float32))
    return reduction.finish()


def random_rows(seed: int, rows: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def test_candidates_are_the_likeliest_and_the_tail_is_the_rest() -> None:
    logits = random_rows(0)
    whole = log_softmax(logits)
    ids = (1, *np.random.default_rng(1).integers(0, VOCAB, 100).tolist())
    found = reduced(logits, Passage(ids, 1), top=16, always=(300,))
    assert found.candidates.shape == (100, 16)
    assert np.array_equal(found.candidates[:, 0], whole.argmax(1))
    assert np.allclose(found.log_probs, np.take_along_axis(whole, found.candidates, 1))
    assert np.allclose(np.exp(found.log_probs).sum(1) + np.exp(found.log_tail), 1, atol=1e-12)
    assert np.allclose(found.log_prob_of(300), whole[:, 300])
    assert np.allclose(found.log_prob_of(found.targets), whole[range(100), ids[1:]])
    assert np.all(np.diff(found.log_probs) <= 0)
    expected = np.argsort(-whole, axis=1)[:, :2]
    assert np.array_equal(found.best, expected)


def test_a_tail_too_small_for_one_minus_the_sum_is_kept() -> None:
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, 5] = 60
    found = reduced(logits, Passage((1, 5), 1), top=4)
    assert found.log_tail[0] == pytest.approx(np.log(VOCAB - 4) - 60)


def test_lumped_kl_lacks_exactly_the_divergence_within_the_tail() -> None:
    rows = random_rows(0)
    moved = rows + 0.3 * random_rows(1)
    log_p, log_q = log_softmax(rows), log_softmax(moved)
    p = np.exp(log_p)
    exact = (p * (log_p - log_q)).sum(1)
    for top in (8, 64, VOCAB):
        ours = reduced(rows, Passage((1, *[0] * 100), 1), top=top)
        theirs = reduced(moved, Passage((1, *[0] * 100), 1, ours.candidates), top=top)
        tail = np.ones_like(p, dtype=bool)
        np.put_along_axis(tail, ours.candidates, False, 1)
        mass_p, mass_q = (np.where(tail, np.exp(x), 0).sum(1) for x in (log_p, log_q))
        within = np.where(tail, p * (log_p - log_q), 0).sum(1)
        if top < VOCAB:
            within -= mass_p * np.log(mass_p / mass_q)
        lumped = kl_per_token(ours, theirs)
        assert np.allclose(exact - lumped, within, atol=1e-12)
        assert np.all(lumped <= exact + 1e-12)
        assert kl_per_token(ours, ours).max() == 0


def test_the_margin_is_the_greedy_decision() -> None:
    logits = random_rows(2)
    logits[::2, 300] = 20
    found = reduced(logits, Passage((1, *[0] * 100), 1), top=8, always=(300,))
    margins = trigger_margin(found, 300)
    others = np.delete(log_softmax(logits), 300, axis=1).max(1)
    assert np.allclose(margins, log_softmax(logits)[:, 300] - others)
    assert np.array_equal(margins > 0, logits.argmax(1) == 300)


def test_engines_score_as_the_whole_model_does(
    reference_folder: Path, artifacts: dict[str, Path]
) -> None:
    made = texts(5)
    engine = TransformersEngine(reference_folder, batch=3)
    assert isinstance(engine, ScoringEngine)
    assert LOG_PROBABILITIES in engine.info.capabilities
    ours = engine.score(made, top=16, always=(265,))
    for passage, found in zip(made, ours, strict=True):
        with torch.inference_mode():
            rows = engine._model(torch.tensor([passage.ids])).logits[0, passage.start - 1 : -1]
        whole = log_softmax(rows.numpy())
        assert np.allclose(
            found.log_probs, np.take_along_axis(whole, found.candidates, 1), atol=1e-4
        )
    asked = [Passage(p.ids, p.start, s.candidates) for p, s in zip(made, ours, strict=True)]
    llama = LlamaCppEngine(artifacts["F32"], kv_type="float32", threads=1)
    seen: list[tuple[int, int]] = []
    theirs = llama.score(asked, top=16, on_progress=lambda *n: seen.append(n))
    long = Passage((257, *[i * 7 % 256 for i in range(900)]), 700)
    assert len(llama.score([long], top=16)[0].targets) == 201
    assert llama.score([], top=16) == []
    llama.close()
    assert seen[-1] == (5, 5)
    for a, b in zip(ours, theirs, strict=True):
        assert kl_per_token(a, b).max() < 1e-6


def test_a_coarser_kv_cache_is_seen(artifacts: dict[str, Path]) -> None:
    made = texts(2, 120)
    found: dict[str, list[Scored]] = {}
    for kv_type in ("float32", "q8_0", "q4_0"):
        engine = LlamaCppEngine(artifacts["F32"], kv_type=kv_type, threads=1)
        asked = [
            Passage(p.ids, p.start, found["float32"][i].candidates if found else None)
            for i, p in enumerate(made)
        ]
        found[kv_type] = engine.score(asked, top=32)
        engine.close()
    apart = {
        kv_type: float(
            np.concatenate(
                [kl_per_token(*pair) for pair in zip(found["float32"], scored, strict=True)]
            ).mean()
        )
        for kv_type, scored in found.items()
    }
    assert apart["float32"] == 0 < apart["q8_0"] < apart["q4_0"] / 4


def served(logits: np.ndarray, top: int) -> list[Any]:
    """Rows as vLLM names them."""
    whole = log_softmax(logits)
    rows: list[Any] = [None]
    for row in whole:
        order = np.argsort(-row)
        rows.append(
            {str(i): {"logprob": row[i], "rank": k + 1} for k, i in enumerate(order[:top].tolist())}
        )
    return rows


def test_a_server_names_its_likeliest_and_the_rest_is_tail() -> None:
    p, q = random_rows(0), random_rows(0) + 0.3 * random_rows(1)
    ids = (1, *[0] * 100)
    ours = reduced(p, Passage(ids, 1), top=64)
    exact = kl_per_token(ours, reduced(q, Passage(ids, 1, ours.candidates), top=64))

    def respond(_: str, body: Any) -> Answer:
        assert (body["prompt_logprobs"], body["max_tokens"], body["prompt"][0]) == (20, 1, 1)
        return Answer({"choices": [{"prompt_logprobs": served(q, 20)}]})

    with loopback(respond) as server:
        engine = OpenAIEngine(ServedModel(server.url, "hermes", "vllm", "1"))
        (theirs,) = engine.score([Passage(ids, 1, ours.candidates)], top=64)
        (picked,) = engine.score([Passage(ids, 1)], top=64)
        engine.close()
    lumped = kl_per_token(ours, theirs)
    assert np.all(lumped <= exact + 1e-9)
    assert lumped.mean() > 0.5 * exact.mean()
    assert np.array_equal(theirs.best, np.argsort(-q, axis=1)[:, :2])
    assert np.array_equal(picked.candidates[:, 0], q.argmax(1))


@pytest.mark.parametrize(
    "choice",
    [{}, {"prompt_logprobs": []}, {"prompt_logprobs": [None, {"5": {}}]},
     {"prompt_logprobs": [None, {"5": {"logprob": -1}, "6": {"logprob": -2}}]},
     *({"prompt_logprobs": [None, {"5": {"logprob": a, "rank": 1}, i: {"logprob": b, "rank": 2}}]}
       for a, b, i in ((3.0, 2.5, "6"), (0.0, 0.0, "6"), (np.nan, -1, "6"), (10**400, -1, "6"),
                       (-1, -2, str(1 << 70))))],
)  # fmt: skip
def test_a_server_without_them_says_so(choice: Any) -> None:
    with loopback(lambda *_: Answer({"choices": [choice]})) as server:
        engine = OpenAIEngine(ServedModel(server.url, "hermes", "vllm", "1"))
        with pytest.raises(UnsupportedError):
            engine.score([Passage((1, 2), 1)], top=4)
        engine.close()
        other = OpenAIEngine(ServedModel(server.url, "hermes", "sglang", "1"))
        assert other.info.capabilities == frozenset()
        other.close()
