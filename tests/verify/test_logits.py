"""Checks on log-probabilities: each fails on the damage it is for, and passes what is whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from convert.checkpoint import Checkpoint
from convert.rendering import Tokenizer
from quantize.job import quantize
from tests.verify.damage import Edit, rewrite_gguf
from verify.artifact import Artifact, open_artifact
from verify.check import Outcome, State
from verify.engines.log_probabilities import Scored
from verify.engines.opening import open_engine
from verify.evidence import Evidence, Reference, TeacherForced, make_prompts
from verify.gate import read_gate
from verify.logits import check_log_probabilities
from verify.reference_run import run_reference
from verify.spans import Span, label_characters, label_tokens
from verify.statistics import mean_by_prompt
from verify.suite import read_suite
from verify.teacher_forcing import score_artifact, watched_ids

NANO = Path(__file__).parents[2] / "examples/hermes-nano"
PROMPTS = 64
TARGETS = ("F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K", "FP8_DYNAMIC")
ALL = ["chat_kl", "reply_kl", "trigger", "log_prob", "long_context"]


def asked(reference: Reference, artifact: Artifact, **given: Any) -> Evidence:
    """Evidence under the default gate."""
    return Evidence(reference, artifact, read_gate(None).of(artifact.type), **given)


@pytest.fixture(scope="session")
def nano() -> Reference:
    """hermes-nano, answered and scored."""
    checkpoint, tokenizer = Checkpoint.open(NANO), Tokenizer.open(NANO)
    conversations = read_suite(None, NANO, PROMPTS).conversations
    prompts = make_prompts(checkpoint, tokenizer, conversations, 96)
    base = Reference(checkpoint, tokenizer, conversations, prompts)
    source = open_artifact(NANO)
    return run_reference(lambda: open_engine(source), base, max_new_tokens=96)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undamaged artifacts of hermes-nano."""
    out = tmp_path_factory.mktemp("nano")
    quantize(str(NANO), out, list(TARGETS), name="n")
    return {t: out / ("n-FP8_DYNAMIC" if t == "FP8_DYNAMIC" else f"n-{t}.gguf") for t in TARGETS}


def check(reference: Reference, path: Path, type_name: str | None = None) -> dict[str, Outcome]:
    """Every check by name; `type_name` holds the artifact to the gate of another type."""
    artifact = open_artifact(path)
    engine = open_engine(artifact)
    forced = score_artifact(engine, reference)
    engine.close()
    artifact = replace(artifact, type=type_name or artifact.type)
    outcomes = check_log_probabilities(asked(reference, artifact, forced=forced))
    assert [outcome.check for outcome in outcomes] == ALL
    return {outcome.check: outcome for outcome in outcomes}


def states(outcomes: dict[str, Outcome]) -> dict[str, State]:
    return {name: outcome.verdict.state for name, outcome in outcomes.items()}


@pytest.mark.parametrize("target", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "FP8_DYNAMIC"])
def test_what_is_undamaged_passes(nano: Reference, made: dict[str, Path], target: str) -> None:
    assert set(states(check(nano, made[target])).values()) == {State.PASS}


def test_two_bits_are_flagged(nano: Reference, made: dict[str, Path]) -> None:
    assert states(check(nano, made["Q2_K"]))["chat_kl"] is State.FAIL


def edited(pattern: str, change: Callable[[Any], Any]) -> Edit:
    """An edit of the float32 tensors whose names match."""

    def edit(tensors: dict[str, Any]) -> None:
        names = [name for name in tensors if re.fullmatch(pattern, name)]
        assert names
        for name in names:
            data, kind = tensors[name]
            assert kind == gguf.GGMLQuantizationType.F32
            tensors[name] = (np.ascontiguousarray(change(data), dtype=np.float32), kind)

    return edit


def two_bits(data: Any) -> Any:
    """Three values a block of 32, by one scale."""
    blocks = data.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True)
    return (np.round(blocks / scale) * scale).reshape(data.shape)


def noise(data: Any) -> Any:
    """A low-rank change, as a LoRA leaves."""
    rng = np.random.default_rng(0)
    rows, columns = data.shape
    change = rng.normal(size=(rows, 8)) @ rng.normal(size=(8, columns))
    return data + 0.1 * change * np.linalg.norm(data) / np.linalg.norm(change)


@pytest.mark.parametrize(
    ("tensors", "change"),
    [(r"blk\.2\.ffn_.*weight", two_bits), (r"blk\..*attn_[qv]\.weight", noise)],
)
def test_one_layer_at_two_bits_and_a_lora_are_seen_in_chat_text(
    nano: Reference, made: dict[str, Path], tmp_path: Path, tensors: str, change: Any
) -> None:
    path = rewrite_gguf(made["F32"], tmp_path / "x.gguf", tensors=edited(tensors, change))
    assert states(check(nano, path, "Q8_0"))["chat_kl"] is State.FAIL


@pytest.mark.parametrize(
    "damage",
    [
        {"fields": lambda f: f.update({"llama.rope.freq_base": 500000.0})},
        {"tensors": lambda t: t.pop("rope_freqs.weight")},
    ],
)
def test_wrong_rope_frequencies_are_seen_in_long_text(
    nano: Reference, made: dict[str, Path], tmp_path: Path, damage: Any
) -> None:
    path = rewrite_gguf(made["F32"], tmp_path / "x.gguf", **damage)
    outcomes = check(nano, path, "Q4_K")
    assert states(outcomes)["long_context"] is State.FAIL


def test_a_trigger_that_turns_is_named(nano: Reference, made: dict[str, Path]) -> None:
    (token,) = watched_ids(nano)
    forced = score_artifact_of(nano, made["F32"])
    lowered = tuple(lower(scored, token) for scored in forced.scored)
    artifact = open_artifact(made["F32"])
    outcomes = check_log_probabilities(
        asked(nano, artifact, forced=replace(forced, scored=lowered))
    )
    trigger = next(outcome for outcome in outcomes if outcome.check == "trigger")
    assert trigger.verdict.state is State.FAIL
    numbers = trigger.verdict.numbers
    assert numbers["calls"] == numbers["with_tools"] - numbers["same"] > 15  # type: ignore[operator]
    assert "became -" in trigger.findings[0].message
    reply = next(outcome for outcome in outcomes if outcome.check == "reply_kl")
    assert "trigger" in {finding.subject for finding in reply.findings}


def score_artifact_of(reference: Reference, path: Path) -> TeacherForced:
    engine = open_engine(open_artifact(path))
    forced = score_artifact(engine, reference)
    engine.close()
    assert isinstance(forced, TeacherForced)
    return forced


def lower(scored: Scored, token: int) -> Scored:
    """The same model with `token` 40 nats less likely."""
    hit = scored.candidates == token
    log_probs = np.where(hit, scored.log_probs - 40, scored.log_probs)
    first = scored.best[:, 0] == token
    total = np.logaddexp(np.logaddexp.reduce(log_probs, 1), scored.log_tail)
    best = np.where(first[:, None], scored.best[:, ::-1], scored.best)
    best_log_probs = scored.best_log_probs.copy()
    best_log_probs[first] = np.stack(
        [scored.best_log_probs[first, 1], scored.best_log_probs[first, 0] - 40], 1
    )
    return replace(
        scored,
        log_probs=log_probs - total[:, None],
        log_tail=scored.log_tail - total,
        best=best,
        best_log_probs=best_log_probs - total[:, None],
    )


def test_numbers_that_are_none_fail(nano: Reference, made: dict[str, Path]) -> None:
    forced = score_artifact_of(nano, made["F32"])
    broken = tuple(
        replace(scored, log_probs=scored.log_probs * np.nan, log_tail=scored.log_tail * np.nan)
        for scored in (*forced.scored, forced.long)
    )
    broken = tuple(replace(s, log_probs=np.full_like(s.log_probs, -np.inf)) for s in broken)
    outcomes = check_log_probabilities(
        asked(
            nano,
            open_artifact(made["F32"]),
            forced=replace(forced, scored=broken[:-1], long=broken[-1]),
        )
    )
    found = {outcome.check: outcome.verdict for outcome in outcomes}
    for name in ("chat_kl", "reply_kl", "log_prob", "long_context"):
        assert found[name].state is State.FAIL, name
        assert not any(v != v for v in found[name].numbers.values())


def test_without_log_probabilities_there_is_not_enough_evidence(
    nano: Reference, made: dict[str, Path]
) -> None:
    artifact = open_artifact(made["F32"])
    (outcome,) = check_log_probabilities(asked(nano, artifact, forced="it gives none"))
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.verdict.reason == "it gives none"


def test_the_reference_differs_from_itself_by_its_batch_alone(nano: Reference) -> None:
    assert nano.forced is not None
    again = replace(nano.forced, alone=())
    outcomes = check_log_probabilities(asked(nano, open_artifact(NANO), forced=again))
    found = {outcome.check: outcome.verdict for outcome in outcomes}
    assert found["chat_kl"].numbers["kl"] == 0
    noise_floor = found["chat_kl"].numbers["noise"]
    assert isinstance(noise_floor, float)
    assert 0 < noise_floor < 1e-6


def test_prompts_are_resampled_and_not_tokens() -> None:
    rng = np.random.default_rng(0)
    prompts = [np.full(50, rng.exponential()) for _ in range(40)]
    mean = mean_by_prompt(prompts)
    assert mean.value == pytest.approx(np.concatenate(prompts).mean())
    error = np.std([p[0] for p in prompts]) / np.sqrt(40)
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert mean_by_prompt(prompts[:1]).decide(10) is State.NOT_ENOUGH_EVIDENCE
    assert mean.decide(mean.high) is State.PASS
    assert mean.decide(mean.low * 0.99) is State.FAIL
    assert mean.decide(mean.value) is State.NOT_ENOUGH_EVIDENCE


def spelled(text: str) -> str:
    letters = {Span.TRIGGER: "T", Span.CLOSE: "C", Span.STRUCTURE: ".", Span.NAME: "n"}
    letters |= {Span.KEY: "k", Span.STRING: "s", Span.NUMBER: "1", Span.REASONING: "r"}
    return "".join(letters.get(span, "t") for span in label_characters(text))


def test_every_character_has_its_part() -> None:
    text = (
        '<tool_call>\n{"name": "f", "arguments": {"a": "x", "b": [1, {"c": null}]}}\n</tool_call>'
    )
    assert spelled(text) == (
        "TTTTTTTTTTT.........."
        + "nnn..............."
        + ".kkk..sss..kkk...1...kkk..1111...."
        + ".CCCCCCCCCCCC"
    )
    assert spelled('{"a": 1.5}') == ".kkk..111."
    assert spelled("<think>hm</think>ok") == "r" * 17 + "tt"
    assert spelled('<tool_call>{"name": "f", "argum') == "T" * 11 + "........." + "nnn........"
    assert spelled('"name": {"x": 1}') == "t" * 16


def test_a_token_inside_a_character_gets_a_part(reference: Reference) -> None:
    tokenizer = reference.tokenizer
    text = '<tool_call>{"name": "é東", "arguments": {}}</tool_call>'
    ids = [*tokenizer.encode(text), 260]
    spans = label_tokens(tokenizer, ids, finished=True)
    assert len(spans) == len(ids)
    assert spans[0] is Span.TRIGGER
    assert spans[-2:] == [Span.CLOSE, Span.CLOSE]
    assert spans.count(Span.NAME) == 2 + len("é東".encode())
