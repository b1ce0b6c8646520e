"""The decision to call: where it is read, which way it turned, and what cannot show a turn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.conversation import Conversation
from convert.rendering import Tokenizer
from tests.verify.replies import TOOLS, call
from verify.check import Outcome, State
from verify.engines.log_probabilities import Scored
from verify.evidence import Answer, Reference
from verify.gate import read_gate
from verify.teacher_forcing import watched_ids
from verify.tool_calls import parse_reply
from verify.trigger import check_trigger, decision_token

END, OTHER = 260, 9
ASKED = read_gate(None).of("Q8_0")  # a floor of 0.90


def answer(tokenizer: Tokenizer, text: str, *, finished: bool = True) -> Answer:
    ids = (*tokenizer.encode(text), *([END] if finished else []))
    return Answer(ids, text, parse_reply(text), finished)


def reply(length: int, at: int | None, margin: float, token: int) -> Scored:
    """Scores along a reply whose decision at one token has a margin; all others say "no call"."""
    margins = np.full(length, -9.0)
    if at is not None:
        margins[at] = margin
    log_probs = np.stack([-np.logaddexp(0, -margins), -np.logaddexp(0, margins)], 1)
    ids = np.tile(np.array([token, OTHER]), (length, 1))
    order = np.argsort(-log_probs, axis=1)
    return Scored(
        targets=np.full(length, OTHER),
        candidates=ids,
        log_probs=log_probs,
        log_tail=np.full(length, -np.inf),
        best=np.take_along_axis(ids, order, 1),
        best_log_probs=np.take_along_axis(log_probs, order, 1),
    )


def judged(reference: Reference, margins: Sequence[tuple[float, float]], text: str = "") -> Outcome:
    """The check on conversations with these margins; every reply is `text`, or call or sentence."""
    tokenizer = reference.tokenizer
    (token,) = watched_ids(reference)
    answers = tuple(
        answer(tokenizer, text or (call(1) if ours > 0 else "None of them.")) for ours, _ in margins
    )
    conversations = tuple(
        Conversation(f"c{i}", ({"role": "user", "content": "x"},), TOOLS)
        for i in range(len(margins))
    )
    base = replace(reference, conversations=conversations, prompts=(), answers=answers)
    pairs = []
    for i, (ours, theirs) in enumerate(margins):
        at = decision_token(tokenizer, answers[i])
        size = len(answers[i].ids)
        pairs.append((i, reply(size, at, ours, token), reply(size, at, theirs, token)))
    return check_trigger(base, ASKED, pairs, {})


KEPT_CALL, KEPT_NONE, TURNED_OFF, TURNED_ON = (3.0, 2.0), (-3.0, -2.0), (3.0, -1.0), (-3.0, 1.0)


def test_what_turned_off_and_what_turned_on_are_counted_apart(reference: Reference) -> None:
    outcome = judged(
        reference, [KEPT_CALL] * 60 + [TURNED_OFF] * 3 + [KEPT_NONE] * 38 + [TURNED_ON] * 2
    )
    numbers = outcome.verdict.numbers
    assert (numbers["same"], numbers["with_tools"], numbers["calls"]) == (98, 103, 63)
    assert (numbers["calls_turned_off"], numbers["calls_turned_off_of"]) == (3, 63)
    assert (numbers["calls_turned_on"], numbers["calls_turned_on_of"]) == (2, 40)
    assert numbers["calls_turned_off_rate"] == pytest.approx(3 / 63)
    assert numbers["calls_turned_on_low"] < 2 / 40 < numbers["calls_turned_on_high"]  # type: ignore[operator]
    assert "turned off 3 of 63 calls, turned on 2 of 40 without one" in outcome.verdict.reason
    assert [f.subject for f in outcome.findings] == ["c60", "c61", "c62", "c101", "c102"]


def test_without_a_flip_it_passes(reference: Reference) -> None:
    outcome = judged(reference, [KEPT_CALL] * 30 + [KEPT_NONE] * 30)
    assert outcome.verdict.state is State.PASS


def test_without_a_call_nothing_has_been_shown(reference: Reference) -> None:
    outcome = judged(reference, [KEPT_NONE] * 100)
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "calls too seldom for lost calls to show; about 12 more prompts" in (
        outcome.verdict.reason
    )


@pytest.mark.parametrize(("calls", "state"), [(10, State.NOT_ENOUGH_EVIDENCE), (11, State.PASS)])
def test_calls_that_could_all_be_lost_within_the_floor_show_nothing(
    reference: Reference, calls: int, state: State
) -> None:
    outcome = judged(reference, [KEPT_CALL] * calls + [KEPT_NONE] * (100 - calls))
    assert outcome.verdict.state is state


@pytest.mark.parametrize(("turned", "kept"), [(TURNED_OFF, KEPT_NONE), (TURNED_ON, KEPT_CALL)])
def test_one_kind_that_turned_is_not_hidden_by_many_of_the_other(
    reference: Reference, turned: tuple[float, float], kept: tuple[float, float]
) -> None:
    """Of 320 decisions 96 % are the same, and of 20 of one kind 12 turned."""
    ours = KEPT_CALL if turned is TURNED_OFF else KEPT_NONE
    outcome = judged(reference, [turned] * 12 + [ours] * 8 + [kept] * 300)
    assert outcome.verdict.numbers["same_low"] > 0.90  # type: ignore[operator]
    assert outcome.verdict.state is State.FAIL


def test_an_open_question_says_how_many_prompts_would_close_it(reference: Reference) -> None:
    outcome = judged(reference, [KEPT_CALL] * 10 + [KEPT_NONE] * 10)
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.verdict.numbers["prompts_needed"] == 35
    assert outcome.verdict.reason.endswith(": about 35 prompts needed")
    nothing = judged(reference, [])
    assert nothing.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert nothing.verdict.reason.endswith("compared: about 35 prompts needed")


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        (call(1), "<tool_call>"),
        ("\n\n" + call(1), "<tool_call>"),
        ("None.", "N"),
        ("<think>f or g?</think>" + call(1), "<tool_call>"),
        ("<think>é東 <tool_call>?</think>\n\n" + call(1), "<tool_call>"),
        ("<think>a</think><scratch_pad>b</scratch_pad>\nNone.", "N"),
        ("<think>東</think>東", "東"),
        ("<think>hm</think>\n", "<|im_end|>"),
    ],
)
def test_the_decision_is_read_where_the_answer_begins(
    reference: Reference, text: str, piece: str
) -> None:
    found = answer(reference.tokenizer, text)
    at = decision_token(reference.tokenizer, found)
    assert at is not None
    shown = text + "<|im_end|>"
    before = reference.tokenizer.decode(found.ids[:at])
    assert before == shown[: shown.rindex(piece)]
    assert reference.tokenizer.decode(found.ids[at:]) == shown[shown.rindex(piece) :]


def test_reasoning_without_an_end_has_no_decision(reference: Reference) -> None:
    assert decision_token(reference.tokenizer, answer(reference.tokenizer, "<think>f?")) is None
    outcome = judged(reference, [KEPT_CALL] * 40, text="<think>f, f, f")
    assert outcome.verdict.numbers["with_tools"] == 0
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE


def test_a_call_that_turns_after_the_reasoning_is_seen(reference: Reference) -> None:
    """At the first token both think; the damage is in the decision that comes later."""
    text = "<think>f is right</think>\n" + call(1)
    outcome = judged(reference, [TURNED_OFF] * 40, text=text)
    assert outcome.verdict.state is State.FAIL
    assert outcome.verdict.numbers["calls_turned_off"] == 40


def test_a_tag_of_several_tokens_is_judged_by_its_first_one(
    reference: Reference, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "untagged"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<tool_call>"]
    path.write_text(json.dumps(content))
    untagged = replace(reference, tokenizer=Tokenizer.open(folder))
    assert untagged.tokenizer.token_id("<tool_call>") is None
    tag = untagged.tokenizer.encode("<tool_call>")
    assert watched_ids(untagged) == (tag[0],)
    assert len(tag) == len("<tool_call>")
    outcome = judged(untagged, [KEPT_CALL] * 30 + [KEPT_NONE] * 30)
    assert outcome.verdict.state is State.PASS
    assert "judged by the first of the 11 tokens that <tool_call> is" in outcome.verdict.reason
    assert judged(untagged, [TURNED_OFF] * 60).verdict.state is State.FAIL
