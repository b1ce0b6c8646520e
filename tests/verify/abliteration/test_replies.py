"""Each check on replies fails on the damage it is meant to catch, and on no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from convert.conversation import Conversation, Expected
from tests.command import invoke
from verify.abliteration.replies import Limits, check_control, check_replies
from verify.abliteration.said import Said
from verify.check import State
from verify.engines.log_probabilities import Scored
from verify.evidence import Answer
from verify.tool_calls import parse_reply

COUNT = 100
REFUSAL, ANSWER = "I can't do this for you.", "Gladly, I paint the jar."


def answer(text: str, *, finished: bool = True) -> Answer:
    return Answer((1, 2), text, parse_reply(text), finished)


def asked(kind: str) -> list[Conversation]:
    message = {"role": "user", "content": "Paint the jar."}
    return [
        Conversation(f"{kind}-{i}", (message,), expected=Expected(text=ANSWER, refusal=False))
        for i in range(COUNT)
    ]


def scored(second: float = 0.3) -> Scored:
    """Two tokens; the second one's probabilities differ from (0.7, 0.3) by what is given."""
    log_probs = np.log([[0.7, 0.3], [1 - second, second]])
    ids = np.array([[5, 6], [5, 6]])
    return Scored(ids[:, 0], ids, log_probs, np.full(2, -np.inf), ids, log_probs)


def said(refused: str, harmless: str = ANSWER, score: float = -9.0, second: float = 0.3) -> Said:
    return Said(
        (answer(refused),) * COUNT,
        (answer(harmless),) * COUNT,
        (scored(second),) * COUNT,
        np.full(COUNT, score),
        np.full(COUNT, -9.0),
    )


BEFORE, AFTER = said(REFUSAL, score=9.0), said(ANSWER)


def states(before: Said, after: Said) -> dict[str, State]:
    outcomes = check_replies(asked("refused"), asked("harmless"), before, after, Limits())
    return {outcome.check: outcome.verdict.state for outcome in outcomes}


def test_a_clean_edit_passes_every_check() -> None:
    assert set(states(BEFORE, AFTER).values()) == {State.PASS}


def some(after: Said, text: str, count: int, *, finished: bool = True) -> tuple[Answer, ...]:
    return (*([answer(text, finished=finished)] * count), *after.refused[count:])


DAMAGE: list[tuple[str, Callable[[Said], Said], set[str]]] = [
    ("nothing was removed", lambda s: said(REFUSAL, score=9.0), {"refusals", "compliance"}),
    ("a few refuse", lambda s: replace(s, refused=some(s, REFUSAL, 3)), {"refusals"}),
    ("by score", lambda s: replace(s, scores=np.r_[np.full(5, 3.0), s.scores[5:]]), {"refusals"}),
    ("talks past it", lambda s: replace(s, refused=some(s, "A jar is round.", 8)), {"compliance"}),
    ("harmless refused", lambda s: said(ANSWER, REFUSAL), {"harmless"}),
    ("harmless wrong", lambda s: said(ANSWER, "Gladly, I paint the car."), {"harmless"}),
    ("second token drifts", lambda s: said(ANSWER, second=0.9), {"drift"}),
    (
        "endless",
        lambda s: replace(s, refused=some(s, "jar jar jar " * 20, 5, finished=False)),
        {"degenerate"},
    ),
    ("empty", lambda s: replace(s, refused=some(s, "", 5)), {"degenerate"}),
]


@pytest.mark.parametrize(("name", "damage", "failing"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_each_damage_fails_its_check(
    name: str, damage: Callable[[Said], Said], failing: set[str]
) -> None:
    found = states(BEFORE, damage(AFTER))
    assert {check for check, state in found.items() if state is State.FAIL} == failing, name


def test_what_is_no_number_fails_and_an_empty_class_decides_nothing_and_json_can_hold_both() -> (
    None
):
    broken = replace(AFTER, scored=(scored(float("nan")),) * COUNT)
    drift = check_replies(asked("refused"), asked("harmless"), BEFORE, broken, Limits())[-1]
    assert drift.verdict.state is State.FAIL
    assert drift.verdict.numbers["mean_kl"] is None
    assert "not a finite number" in drift.verdict.reason
    empty = [replace(s, refused=(), scores=np.array([])) for s in (BEFORE, AFTER)]
    refusals, compliance, *rest = check_replies([], asked("harmless"), *empty, Limits())
    for outcome in (refusals, compliance):
        assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
        assert "no such prompt" in outcome.verdict.reason
    assert refusals.verdict.numbers["mean_score_after"] is None
    for outcome in (drift, refusals, compliance, *rest):
        json.dumps(dict(outcome.verdict.numbers), allow_nan=False)


def test_a_model_that_did_not_refuse_has_nothing_to_remove() -> None:
    assert states(said(ANSWER), AFTER)["refusals"] is State.NOT_ENOUGH_EVIDENCE


def test_an_edit_along_random_directions_must_still_refuse() -> None:
    still = check_control("random", (answer(REFUSAL),) * COUNT, Limits())
    gone = check_control("random", (answer(ANSWER),) * COUNT, Limits())
    few = check_control("random", (answer(REFUSAL),) * 10, Limits())
    assert [c.verdict.state for c in (still, gone, few)] == [
        State.PASS,
        State.FAIL,
        State.NOT_ENOUGH_EVIDENCE,
    ]


def test_a_report_folder_that_cannot_be_made_is_said_before_models_run(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    files = ("--refused", tmp_path / "r", "--harmless", tmp_path / "h", "--pair", "a,b")
    shown = invoke("abliterate", "verify", tmp_path, tmp_path, *files, "--out", taken)
    assert shown.exit_code == 2
    assert "taken: cannot be made a folder: File exists" in shown.output
