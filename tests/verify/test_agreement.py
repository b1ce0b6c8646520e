"""Agreement: what is not known yet is none, and an open question says what would close it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.verify.replies import answer, call, evidence_of
from verify.agreement import check_agreement
from verify.check import State
from verify.evidence import Evidence, Reference


def cut_off(evidence: Evidence, share: float) -> Evidence:
    """The first of the reference's replies in prompts with tools end at the limit of tokens."""
    reference = evidence.reference
    with_tools = [i for i, c in enumerate(reference.conversations) if c.tools]
    cut = set(with_tools[: round(share * len(with_tools))])
    answers = tuple(
        replace(one, finished=False) if i in cut else one for i, one in enumerate(reference.answers)
    )
    return replace(evidence, reference=replace(reference, answers=answers))


@pytest.mark.parametrize(
    ("share", "state"),
    [(0.0, State.PASS), (0.05, State.PASS), (0.30, State.NOT_ENOUGH_EVIDENCE),
     (1.0, State.NOT_ENOUGH_EVIDENCE)],
)  # fmt: skip
def test_replies_that_were_cut_off_do_not_count_towards_a_pass(
    reference: Reference, share: float, state: State
) -> None:
    """The floor of four bits is 0.75: of 200, it takes more than a fifth to leave it open."""
    evidence = cut_off(evidence_of(reference, lambda _, right: right), share)
    verdict = check_agreement(evidence).verdict
    assert verdict.state is state
    assert verdict.numbers["same_calls"] == 200
    assert verdict.numbers["same_calls_cut_off"] == round(200 * share)
    if state is State.NOT_ENOUGH_EVIDENCE:
        assert f"in {round(200 * share)} of them the reference's reply is cut off" in verdict.reason
        assert "longer replies are needed" in verdict.reason


def test_cut_off_replies_that_differ_already_are_a_failure(reference: Reference) -> None:
    def edit(name: str, right: str) -> str:
        return call(1) if name.startswith("idle") else right

    evidence = cut_off(evidence_of(reference, edit), 1.0)
    assert check_agreement(evidence).verdict.state is State.FAIL


@pytest.mark.parametrize("wrong", [10, 44])
def test_an_open_question_says_how_many_prompts_would_close_it(
    reference: Reference, wrong: int
) -> None:
    def edit(name: str, right: str) -> str:
        kind, number = name.split("-")
        return "Hm." + call(1) if kind == "tool" and int(number) < wrong else right

    evidence = evidence_of(reference, edit)
    strict = evidence.thresholds.model_copy(update={"same_calls": 0.95 if wrong == 10 else 0.80})
    verdict = check_agreement(replace(evidence, thresholds=strict)).verdict
    if wrong == 10:
        assert verdict.reason.endswith("no number of prompts tells this from the limit")
        return
    assert verdict.state is State.NOT_ENOUGH_EVIDENCE
    needed = verdict.numbers["prompts_needed"]
    assert isinstance(needed, int)
    assert needed > 200
    assert f"about {needed} prompts needed" in verdict.reason


def test_without_a_conversation_with_tools_the_least_number_is_said(reference: Reference) -> None:
    evidence = evidence_of(reference, lambda _, right: right)
    bare = tuple(replace(c, tools=()) for c in evidence.reference.conversations)
    verdict = check_agreement(
        replace(evidence, reference=replace(evidence.reference, conversations=bare))
    ).verdict
    assert verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert verdict.reason == "no conversation with tools in the suite: about 12 prompts needed"
    assert verdict.numbers["prompts_needed"] == 12


def thinks_on(name: str, right: str) -> str:
    return f"<think>{name}" if name.startswith("tool") else right


def test_thoughts_that_never_end_are_no_agreement_unless_they_are_the_same(
    reference: Reference,
) -> None:
    """Neither makes a call, and neither has an answer."""
    same = evidence_of(reference, thinks_on, first=thinks_on)
    assert check_agreement(same).verdict.numbers["same_calls"] == 200
    other = evidence_of(
        reference, lambda n, r: thinks_on(n, r).replace("tool", "too"), first=thinks_on
    )
    verdict = check_agreement(other).verdict
    assert (verdict.state, verdict.numbers["same_calls"]) == (State.FAIL, 100)
    plain = evidence_of(
        reference, lambda n, r: "No." if n.startswith("tool") else r, first=thinks_on
    )
    assert check_agreement(plain).verdict.numbers["same_calls"] == 100
    assert answer("<think>tool-1").reply.unfinished
