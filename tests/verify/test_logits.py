"""Checks on log-probabilities: each fails on the damage it is for, and passes what is whole."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.errors import ContextError
from tests.verify.conftest import NANO
from tests.verify.run_breakages import RUN_BREAKAGES
from verify.artifact import Artifact, Kind, open_artifact
from verify.check import Outcome, State
from verify.engines import ScoringEngine, StatedScale, WatchingEngine
from verify.engines.log_probabilities import Passage, Scored
from verify.engines.opening import open_engine
from verify.evidence import Evidence, Reference, TeacherForced
from verify.gate import read_gate
from verify.logits import check_log_probabilities
from verify.report.contents import plain
from verify.scales import check_scales
from verify.spans import Span, label_characters, label_tokens
from verify.teacher_forcing import long_passage, score_artifact, watched_ids
from verify.verify import verify

ALL = ["noise_floor", "chat_kl", "reply_kl", "trigger", "log_prob", "long_context"]


def asked(reference: Reference, artifact: Artifact, **given: Any) -> Evidence:
    """Evidence under the default gate."""
    return Evidence(reference, artifact, read_gate(None).of(artifact.type), **given)


def check(reference: Reference, path: Path, type_name: str | None = None) -> dict[str, Outcome]:
    """Every check by name; `type_name` holds the artifact to the gate of another type."""
    artifact = open_artifact(path)
    engine = open_engine(artifact)
    forced = score_artifact(engine, reference)
    scales = engine.stated_scales() if isinstance(engine, WatchingEngine) else ()
    engine.close()
    artifact = replace(artifact, type=type_name or artifact.type)
    given = asked(reference, artifact, forced=forced, scales=scales)
    outcomes = (*check_log_probabilities(given), *check_scales(given))
    assert [outcome.check for outcome in outcomes] == ALL + ["scales"] * bool(scales)
    return {outcome.check: outcome for outcome in outcomes}


def states(outcomes: dict[str, Outcome]) -> dict[str, State]:
    return {name: outcome.verdict.state for name, outcome in outcomes.items()}


@pytest.mark.parametrize("target", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "FP8_DYNAMIC"])
def test_what_is_undamaged_passes(nano: Reference, made: dict[str, Path], target: str) -> None:
    assert set(states(check(nano, made[target])).values()) == {State.PASS}


def test_two_bits_are_flagged(nano: Reference, made: dict[str, Path]) -> None:
    assert states(check(nano, made["Q2_K"]))["chat_kl"] is State.FAIL


@pytest.mark.parametrize("name", RUN_BREAKAGES)
def test_what_is_broken_as_it_runs_is_caught_by_its_check_and_named(
    nano: Reference, made: dict[str, Path], calibrated: Path, tmp_path: Path, name: str
) -> None:
    breakage = RUN_BREAKAGES[name]
    path = breakage.make({**made, "calibrated": calibrated}, tmp_path / "broken")
    outcome = check(nano, path, breakage.gate)[breakage.check]
    assert outcome.verdict.state is State.FAIL
    said = [outcome.verdict.reason, *(f"{f.subject}: {f.message}" for f in outcome.findings)]
    assert any(breakage.named in text for text in said), said


def test_fixed_scales_that_were_calibrated_fit_what_comes(
    nano: Reference, calibrated: Path
) -> None:
    outcomes = check(nano, calibrated)
    assert set(states(outcomes).values()) == {State.PASS}
    numbers = outcomes["scales"].verdict.numbers
    assert numbers["scales"] == numbers["reached"] == 5 * (7 + 2)
    assert len(outcomes["scales"].points) == 45
    idle = tuple(StatedScale(p.subject, 1.0, 0.0) for p in outcomes["scales"].points)
    (unreached,) = check_scales(asked(nano, open_artifact(calibrated), scales=idle))
    assert unreached.verdict.state is State.NOT_ENOUGH_EVIDENCE
    beyond = (StatedScale("a", 1.0, float("inf")), StatedScale("b", float("inf"), 1.0))
    (unbounded,) = check_scales(asked(nano, open_artifact(calibrated), scales=beyond))
    assert (unbounded.verdict.state, len(unbounded.findings)) == (State.FAIL, 2)
    json.dumps(plain(unbounded), allow_nan=False)


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
    assert (numbers["calls_turned_off"], numbers["calls_turned_on"]) == (numbers["calls"], 0)
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


def test_a_part_of_replies_that_may_be_beyond_its_limit_is_undecided_and_named(
    nano: Reference, made: dict[str, Path]
) -> None:
    """Numbers lose 6 hundredths of a nat in every second reply; the limit of a part is 3."""
    base = nano.forced
    assert base is not None
    changed, place = [], 0
    for index, scored in zip(base.conversations, base.scored, strict=True):
        answer = nano.answers[index]
        spans = label_tokens(nano.tokenizer, answer.ids, finished=answer.finished)
        is_number = np.array([span is Span.NUMBER for span in spans])
        lost = np.zeros(len(scored.targets))
        lost[-len(spans) :] = 0.06 * is_number * (place % 2)
        place += bool(is_number.any())
        changed.append(replace(scored, log_probs=scored.log_probs - lost[:, None]))
    forced = replace(base, scored=tuple(changed))
    outcomes = check_log_probabilities(asked(nano, open_artifact(made["Q8_0"]), forced=forced))
    reply = next(outcome for outcome in outcomes if outcome.check == "reply_kl").verdict
    assert reply.numbers["kl_high"] < reply.numbers["limit"]  # type: ignore[operator]
    assert reply.numbers["number_kl_high"] > reply.numbers["span_limit"]  # type: ignore[operator]
    assert reply.state is State.NOT_ENOUGH_EVIDENCE
    assert re.search(
        r"; number .* which holds its limit .*: about \d+ prompts needed", reply.reason
    )


def test_many_turns_of_a_few_conversations_decide_about_no_mean(nano: Reference) -> None:
    """The same scores pass as 64 conversations, and as 64 turns of 7 they are too few."""
    turns = tuple(
        replace(conversation, id=f"c{i % 7}#{i // 7 + 2}", turn=i // 7 + 2)
        for i, conversation in enumerate(nano.conversations)
    )
    artifact = open_artifact(NANO)
    for conversations, state in ((nano.conversations, State.PASS), (turns, None)):
        given = asked(replace(nano, conversations=conversations), artifact, forced=nano.forced)
        found = {outcome.check: outcome.verdict for outcome in check_log_probabilities(given)}
        for name in ("chat_kl", "reply_kl", "log_prob"):
            assert found[name].state is (state or State.NOT_ENOUGH_EVIDENCE), name
            if state is None:
                assert re.search(r": about \d+ prompts needed", found[name].reason)


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


def test_a_server_scored_at_the_ends_of_prompts_is_compared_there(
    nano: Reference, made: dict[str, Path]
) -> None:
    forced = score_artifact_of(nano, made["Q8_0"])
    ends = tuple(
        s.part(slice(-min(len(s.targets), len(nano.answers[i].ids) + 5), None))
        for i, s in zip(forced.conversations, forced.scored, strict=True)
    )
    artifact = open_artifact(made["Q8_0"])
    outcomes = check_log_probabilities(asked(nano, artifact, forced=replace(forced, scored=ends)))
    found = {outcome.check: outcome.verdict for outcome in outcomes}
    assert {verdict.state for verdict in found.values()} == {State.PASS}
    whole = check(nano, made["Q8_0"])
    assert found["reply_kl"].numbers == whole["reply_kl"].verdict.numbers
    prompts = found["chat_kl"].numbers["kl_prompts"]
    assert prompts == whole["chat_kl"].verdict.numbers["kl_prompts"]
    assert found["chat_kl"].numbers["kl_tokens"] == 5 * prompts  # type: ignore[operator]


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


class NoRoom:
    """llama.cpp on a machine without memory for texts of more than `most` tokens."""

    def __init__(self, path: Path, most: int) -> None:
        self._engine, self._most = open_engine(open_artifact(path)), most
        self.info, self.generate, self.close = (
            self._engine.info, self._engine.generate, self._engine.close,
        )  # fmt: skip

    def score(self, passages: list[Passage], **asked: Any) -> list[Scored]:
        longest = max(len(passage.ids) for passage in passages)
        if longest > self._most:
            raise ContextError(f"no memory for {longest} tokens")
        assert isinstance(self._engine, ScoringEngine)
        return self._engine.score(passages, **asked)


def test_without_memory_for_the_long_text_the_others_stand(
    nano: Reference, made: dict[str, Path]
) -> None:
    tokens = len(long_passage(nano).ids)
    engine = NoRoom(made["Q8_0"], tokens - 1)
    forced = score_artifact(engine, nano)
    engine.close()
    given = asked(nano, open_artifact(made["Q8_0"]), forced=forced)
    found = {o.check: o.verdict for o in check_log_probabilities(given)}
    assert list(found) == ALL
    long = found.pop("long_context")
    assert long.state is State.NOT_ENOUGH_EVIDENCE
    assert long.reason == f"no memory for {tokens} tokens"
    assert {verdict.state for verdict in found.values()} == {State.PASS}


def test_without_memory_for_any_text_the_answers_stand(
    nano: Reference, made: dict[str, Path], tmp_path: Path
) -> None:
    report = verify(
        NANO, [made["Q8_0"]], limit=8, max_new_tokens=48,
        open_engine=lambda a: NoRoom(a.path, 10) if a.kind is Kind.GGUF else open_engine(a),
    ).artifacts[0]  # fmt: skip
    states = {o.check: o.verdict.state for o in report.outcomes}
    assert states["log_probabilities"] is State.NOT_ENOUGH_EVIDENCE
    assert report.scores is not None
    assert "agreement" in states
    assert report.state is State.NOT_ENOUGH_EVIDENCE
