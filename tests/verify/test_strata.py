"""Replies with and without reasoning, apart: split off before the call, counted when unclosed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.verify.replies import PER_KIND, Edit, answer, call, evidence_of
from tests.verify.test_report import parse, report_of
from verify.behaviour import check_behaviour
from verify.check import State
from verify.equality import Tier
from verify.evidence import Evidence, Reference
from verify.report.html import render_html
from verify.report.terminal import print_report
from verify.strata import Stratum, reasons, strata
from verify.tool_calls import parse_reply

THOUGHT = "<think>\nThe user wants f, not <tool_call>.\n</think>\n"


def thinks(name: str, right: str) -> str:
    """Every second prompt is thought about first."""
    return "<think>hm, f</think>\n" + right if int(name.split("-")[1]) % 2 else right


def of(evidence: Evidence) -> dict[str, Stratum]:
    assert evidence.answers is not None
    pairs = list(zip(evidence.reference.answers, evidence.answers, strict=True))
    found = strata(evidence.reference.conversations, pairs, Tier.JSON)
    return {stratum.name: stratum for stratum in found}


def test_without_reasoning_there_are_no_strata(reference: Reference) -> None:
    assert of(evidence_of(reference, lambda _, right: right)) == {}


def test_both_kinds_are_counted_apart_and_make_up_the_whole(reference: Reference) -> None:
    found = of(evidence_of(reference, thinks, first=thinks))
    assert list(found) == ["with reasoning", "without reasoning"]
    for stratum in found.values():
        assert stratum.conversations == stratum.kept == 5 * PER_KIND // 2
        assert (stratum.due, stratum.right, stratum.unfinished) == (50, (50, 50), (0, 0))
        assert stratum.confusion == {"exact call": {"exact call": 50}, "no call": {"no call": 50}}


def thinks_wrongly(name: str, right: str) -> str:
    thought = thinks(name, right)
    return thought.replace('"n": 1', '"n": 3') if thought != right and "tool-" in name else thought


def thinks_without_end(name: str, right: str) -> str:
    return thinks(name, right).replace("</think>", "")


def answers_at_once(name: str, right: str) -> str:
    return right


def test_damage_where_the_model_thinks_shows_in_its_stratum_alone(reference: Reference) -> None:
    found = of(evidence_of(reference, thinks_wrongly, first=thinks))
    thinking, other = found["with reasoning"], found["without reasoning"]
    wrong = sum(call(1000 + 37 * i).count('"n": 1') for i in range(1, 100, 2))
    assert 10 < wrong < 50
    assert (thinking.worse, thinking.right) == (wrong, (50, 50 - wrong))
    assert thinking.drop == wrong / 50
    assert (other.worse, other.right, other.drop) == (0, (50, 50), 0)
    assert thinking.confusion["exact call"] == {
        "exact call": 50 - wrong, "other arguments": wrong
    }  # fmt: skip


def test_reasoning_without_an_end_is_an_outcome_of_its_own(reference: Reference) -> None:
    evidence = evidence_of(reference, thinks_without_end, first=thinks)
    found = of(evidence)
    assert found["with reasoning"].unfinished == (0, 250)
    assert found["without reasoning"].unfinished == (0, 0)
    assert found["with reasoning"].kept == 250
    assert found["with reasoning"].confusion["exact call"] == {"unfinished reasoning": 50}
    outcomes = {outcome.check: outcome.verdict.state for outcome in check_behaviour(evidence)}
    assert outcomes["tool_calls"] is State.FAIL
    assert outcomes["lost_calls"] is State.FAIL


def test_a_model_that_stops_thinking_is_seen(reference: Reference) -> None:
    found = of(evidence_of(reference, answers_at_once, first=thinks))
    assert (found["with reasoning"].conversations, found["with reasoning"].kept) == (250, 0)
    assert found["without reasoning"].kept == 250


@pytest.mark.parametrize(
    ("text", "reasoning", "unfinished", "calls"),
    [
        (THOUGHT + call(1), "\nThe user wants f, not <tool_call>.\n", False, 1),
        ("<scratch_pad>Goal: f</scratch_pad>\n" + call(1), "Goal: f", False, 1),
        ("<think>a</think>\n<scratch_pad>b</scratch_pad>\n" + call(1), "a\nb", False, 1),
        ("<think>a</think><think>b</think>c", "a\nb", False, 0),
        ("<think></think>\n\n" + call(1), "", False, 1),
        ("<think>a", "a", True, 0),
        ("<think>" + call(1), call(1), True, 0),
        ("<think>a</think><scratch_pad>b" + call(1), "a\nb" + call(1), True, 0),
        ("<think>a</scratch_pad>" + call(1), "a</scratch_pad>" + call(1), True, 0),
        ("So: <think>a</think>" + call(1), "", False, 1),
        ("a</think>" + call(1), "", False, 1),
        (call(1), "", False, 1),
    ],
)
def test_reasoning_is_split_off_before_the_call_is_read(
    text: str, reasoning: str, unfinished: bool, calls: int
) -> None:
    reply = parse_reply(text)
    assert (reply.reasoning, reply.unfinished, len(reply.calls)) == (reasoning, unfinished, calls)
    assert reasons(answer(text)) is text.startswith(("<think>", "<scratch_pad>"))


@pytest.mark.parametrize("edit", [thinks_wrongly, thinks_without_end, answers_at_once])
def test_the_report_shows_each_stratum(reference: Reference, edit: Edit) -> None:
    report = report_of(reference, edit, first=thinks)
    (with_, without) = report.artifacts[0].strata
    text = " ".join(parse(render_html(report)).text.split())
    for stratum in (with_, without):
        assert f"Replies {stratum.name}" in text
        assert f"the artifact's is one {stratum.name} in {stratum.kept}." in text
        assert (
            f"Right calls: {stratum.right[1]} of {stratum.due}, reference {stratum.right[0]}"
            in text
        )
    assert f"reference 0, artifact {with_.unfinished[1]}" in text
    console = Console(record=True, width=200, file=io.StringIO())
    print_report(report, console)
    shown = " ".join(console.export_text().split())
    assert f"250 with reasoning, {with_.kept} kept so; right calls {with_.right[1]} of 50" in shown
