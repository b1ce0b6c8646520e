"""Right as often as the reference, kind by kind: each check fails on what it is meant to catch."""

from __future__ import annotations

import re

import pytest

from tests.verify.replies import (
    PER_KIND,
    Edit,
    always,
    answer,
    call,
    changed,
    digits_confused,
    evidence_of,
    suite,
)
from verify.behaviour import check_behaviour, not_measured
from verify.call_outcomes import CallOutcome, arguments_kept, call_outcome, calls_due, confusion
from verify.check import Outcome, State
from verify.evidence import Reference
from verify.measures import MEASURES
from verify.statistics import more_needed


def outcomes(reference: Reference, edit: Edit) -> dict[str, Outcome]:
    return {outcome.check: outcome for outcome in check_behaviour(evidence_of(reference, edit))}


def failed(found: dict[str, Outcome]) -> set[str]:
    return {name for name, outcome in found.items() if outcome.verdict.state is State.FAIL}


def test_a_faithful_artifact_passes_every_measure(reference: Reference) -> None:
    found = outcomes(reference, lambda _, right: right)
    assert list(found) == OF_EVERY_SUITE
    assert {name for name, o in found.items() if o.verdict.state is not State.PASS} <= {
        "lost_calls", "malformed_calls", "schema_valid", "wrong_refusals", "spurious_calls"
    }  # fmt: skip  # margins of 2 points take 133 prompts
    assert not failed(found)
    numbers = found["tool_calls"].verdict.numbers
    assert (numbers["worse"], numbers["better"], numbers["drop"]) == (0, 0, 0)
    assert numbers["arguments_kept"] == 1


OF_EVERY_SUITE = [measure.name for measure in MEASURES if measure.name != "bfcl"]
BREAKAGES: dict[str, tuple[Edit, set[str]]] = {
    "digits confused": (digits_confused, {"tool_calls"}),
    "a number written as text": (
        lambda name, right: (
            re.sub(r'"n": (\d+)', r'"n": "\1"', right) if name.startswith("tool") else right
        ),
        {"tool_calls", "schema_valid"},
    ),
    "another function": (changed('"f"', '"g"', "tool"), {"tool_calls", "schema_valid"}),
    "refusals turned on": (
        always("I can't do that.", "harmless"),
        {"wrong_refusals"},
    ),
    "refusal in place of a call": (
        always("Sorry, I do not do that.", "tool"),
        {"tool_calls", "lost_calls", "wrong_refusals"},
    ),
    "a sentence in place of a call": (
        always("The number is known.", "tool"),
        {"tool_calls", "lost_calls"},
    ),
    "refusals turned off": (always("Of course.", "refused"), {"missing_refusals"}),
    "calls where none is due": (always(call(1), "idle"), {"spurious_calls"}),
    "the tags lost": (
        lambda name, right: right.replace("<tool_call>", "").replace("</tool_call>", ""),
        {"tool_calls", "lost_calls"},
    ),
    "Python's notation in a call": (
        changed('"', "'", "tool"),
        {"tool_calls", "malformed_calls"},
    ),
    "every call twice": (
        lambda name, right: right * 2 if name.startswith("tool") else right,
        {"tool_calls"},
    ),
    "malformed JSON": (changed("}", "", "json"), {"json_mode", "same_json"}),
    "JSON of another schema": (changed('"n"', '"m"', "json"), {"json_mode", "same_json"}),
    "talk around the JSON": (changed("{", "Here: {", "json"), {"json_mode", "same_json"}),
    "another JSON value, still valid": (changed("1", "3", "json"), {"same_json"}),
}
"""Ways to behave otherwise, and the measures that fail on each; all others must not."""


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_fails_its_own_measures_and_no_other(reference: Reference, name: str) -> None:
    edit, expected = BREAKAGES[name]
    found = outcomes(reference, edit)
    assert failed(found) == expected
    for check in expected:
        assert found[check].findings, check
        assert found[check].verdict.numbers["worse"]


def test_every_measure_has_a_breakage_that_it_catches() -> None:
    caught = {check for _, expected in BREAKAGES.values() for check in expected}
    assert caught == {*OF_EVERY_SUITE}  # test_bfcl.py has the one for BFCL


def test_an_artifact_that_is_better_than_its_reference_passes(reference: Reference) -> None:
    evidence = evidence_of(reference, lambda _, right: right, first=digits_confused)
    found = {outcome.check: outcome for outcome in check_behaviour(evidence)}
    assert found["tool_calls"].verdict.state is State.PASS
    assert found["tool_calls"].verdict.numbers["worse"] == 0
    assert isinstance(found["tool_calls"].verdict.numbers["better"], int)
    assert found["tool_calls"].verdict.numbers["better"] > 0


@pytest.mark.parametrize(
    ("kind", "wrong", "check"),
    [
        ("tool", "no", "tool_calls"), ("tool", "no", "lost_calls"),
        ("idle", call(1), "spurious_calls"), ("json", "no", "json_mode"),
        ("refused", "Of course.", "missing_refusals"),
    ],
)  # fmt: skip
def test_what_the_reference_never_does_right_is_not_passed(
    reference: Reference, kind: str, wrong: str, check: str
) -> None:
    """Both are wrong every time, so nothing flips; that shows nothing about the artifact."""
    edit = always(wrong, kind)
    found = {o.check: o for o in check_behaviour(evidence_of(reference, edit, first=edit))}[check]
    numbers = found.verdict.numbers
    assert (numbers["reference_right"], numbers["worse"], numbers["better"]) == (0, 0, 0)
    assert found.verdict.state is State.NOT_ENOUGH_EVIDENCE
    needed = numbers["prompts_needed"]
    assert isinstance(needed, int)
    assert needed > PER_KIND
    assert f"about {more_needed(0, PER_KIND, float(str(numbers['margin'])))} more prompts that" in (
        found.verdict.reason
    )


@pytest.mark.parametrize(("right", "state"), [(4, State.NOT_ENOUGH_EVIDENCE), (5, State.PASS)])
def test_the_reference_must_be_right_in_more_than_the_margin(
    reference: Reference, right: int, state: State
) -> None:
    """The margin is 4 points of 100 prompts: of four right ones all could be lost within it."""

    def edit(name: str, reply: str) -> str:
        kind, number = name.split("-")
        return "no" if kind == "tool" and int(number) >= right else reply

    found = {o.check: o for o in check_behaviour(evidence_of(reference, edit, first=edit))}
    assert found["tool_calls"].verdict.numbers["reference_right"] == right
    assert found["tool_calls"].verdict.state is state


def test_json_is_compared_with_the_references_where_it_writes_any(reference: Reference) -> None:
    """Its mistakes are repeated: right or wrong do not enter. Without JSON of its, nothing does."""
    wrong = changed("1", "3", "json")
    repeated = {o.check: o for o in check_behaviour(evidence_of(reference, wrong, first=wrong))}
    assert repeated["same_json"].verdict.state is State.PASS
    assert repeated["same_json"].verdict.numbers["artifact_right"] == PER_KIND
    spaced = outcomes(reference, changed(": ", ":", "json"))["same_json"]
    assert spaced.verdict.numbers["artifact_right"] == PER_KIND
    broken = always("no", "json")
    found = check_behaviour(evidence_of(reference, broken, first=broken))
    assert "same_json" not in {outcome.check for outcome in found}


def test_few_prompts_say_how_many_it_takes(reference: Reference) -> None:
    found = outcomes(reference, lambda _, right: right)["lost_calls"]
    assert found.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "about 133 prompts needed" in found.verdict.reason


def test_a_flip_in_a_hundred_is_shown_though_it_decides_nothing(reference: Reference) -> None:
    found = outcomes(reference, lambda n, right: call(9) if n == "tool-7" else right)["tool_calls"]
    assert found.verdict.state is not State.FAIL
    assert [finding.subject for finding in found.findings] == ["tool-7"]


def test_kinds_without_a_prompt_are_named_not_passed(reference: Reference) -> None:
    assert list(not_measured(())) == OF_EVERY_SUITE
    assert not_measured(list(outcomes(reference, lambda _, right: right).values())) == ()


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (call(1), CallOutcome.EXACT),
        ("Here: " + call(1), CallOutcome.EXACT),
        (call(2), CallOutcome.ARGUMENTS),
        (call(1).replace('"n": 1', '"n": 1.0'), CallOutcome.EQUAL_NUMBERS),
        (call(1).replace('"f"', '"g"'), CallOutcome.FUNCTION),
        (call(1) * 2, CallOutcome.COUNT),
        (call(1).removesuffix("</tool_call>"), CallOutcome.MALFORMED),
        ("<think>f?</think>" + call(1), CallOutcome.EXACT),
        ("<think>f? " + call(1), CallOutcome.UNFINISHED),
        ("<scratch_pad>f?", CallOutcome.UNFINISHED),
        ("<think>f?</think><scratch_pad>hm", CallOutcome.UNFINISHED),
        ("<think>f?</think>", CallOutcome.NO_CALL),
        ("Sorry, no.", CallOutcome.REFUSAL),
        ("It is 1.", CallOutcome.NO_CALL),
    ],
)
def test_the_word_for_a_reply(text: str, outcome: CallOutcome) -> None:
    due = answer(call(1)).reply.calls
    assert call_outcome(due, answer(text)) is outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (call(1), CallOutcome.SPURIOUS),
        ("No.", CallOutcome.NO_CALL),
        ("I won't", CallOutcome.REFUSAL),
    ],
)
def test_the_word_where_no_call_is_due(text: str, outcome: CallOutcome) -> None:
    assert call_outcome((), answer(text)) is outcome


def test_without_expectations_the_references_calls_are_due() -> None:
    from dataclasses import replace

    (conversation, right), *_ = suite()
    silent = replace(conversation, expected=None)
    assert calls_due(silent, answer(call(5))) == answer(call(5)).reply.calls
    assert calls_due(conversation, answer(call(5))) == answer(right).reply.calls
    assert calls_due(replace(silent, tools=()), answer(call(5))) is None


def test_the_table_of_words_counts_every_prompt_with_tools_once(reference: Reference) -> None:
    evidence = evidence_of(reference, always("Sorry, no.", "tool"), first=digits_confused)
    assert evidence.answers is not None
    pairs = list(zip(evidence.reference.answers, evidence.answers, strict=True))
    table = confusion(evidence.reference.conversations, pairs)
    exact = sum("7" not in right for c, right in suite() if c.id.startswith("tool"))
    assert table == {
        "exact call": {"refusal": exact},
        "other arguments": {"refusal": PER_KIND - exact},
        "no call": {"no call": PER_KIND},
    }


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (call(1), 1.0),
        (call(2), 0.5),
        ("no", 0.0),
        (call(1).replace('"f"', '"g"'), 0.0),
        (call(2) + call(1), 1.0),
    ],
)
def test_the_share_of_arguments_kept(text: str, share: float) -> None:
    assert arguments_kept(answer(call(1)), answer(text)) == share


def test_arguments_are_kept_in_whatever_order_the_calls_stand() -> None:
    """By name and order the first two would be taken for each other, and all looks lost."""
    assert arguments_kept(answer(call(1) + call(2)), answer(call(2) + call(1))) == 1
    three = [call(n) for n in (1, 2, 3)]
    other = call(3).replace("mm", "cm") + call(2) + call(9)
    assert arguments_kept(answer("".join(three)), answer(other)) == 4 / 6
    assert arguments_kept(answer(call(1) + call(2)), answer(call(2))) == 0.5
    mixed = call(1) + call(1).replace('"f"', '"g"')
    assert arguments_kept(answer(mixed), answer(mixed.replace("mm", "cm"))) == 0.5


def test_arguments_of_no_call_are_no_number() -> None:
    assert arguments_kept(answer("no"), answer(call(1))) is None
    empty = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert arguments_kept(answer(empty), answer(empty)) == 1
    assert arguments_kept(answer(empty), answer("no")) == 0
