"""Five ways to be equal: what each one forgives, and that the strictest is the one reported."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from convert.conversation import AcceptedCall, ToolCall
from tests.verify.replies import Edit, answer, changed, evidence_of
from verify.agreement import check_agreement
from verify.behaviour import check_behaviour
from verify.call_outcomes import CallOutcome, call_outcome, is_right
from verify.check import Outcome, State
from verify.differences import differences
from verify.equality import Tier, tier_of_calls, tier_of_replies, within
from verify.evidence import Evidence, Reference
from verify.gate import read_gate

SCHEMA = {
    "type": "object",
    "properties": {
        "n": {"type": "number"},
        "city": {"type": "string"},
        "unit": {"type": "string", "default": "celsius"},
        "days": {"type": "integer", "default": 1},
        "must": {"type": "integer", "default": 7},
        "where": {
            "type": "object",
            "properties": {"x": {"type": "integer"}, "z": {"type": "integer", "default": 0}},
        },
        "items": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["must"],
}
TOOLS = ({"type": "function", "function": {"name": "f", "parameters": SCHEMA}},)


@pytest.mark.parametrize(
    ("ours", "theirs", "tier"),
    [
        ({"n": 1, "city": "Oslo"}, {"city": "Oslo", "n": 1}, Tier.JSON),
        ({"n": 1}, {"n": 1.0}, Tier.NUMERIC),
        ({"n": 1e3}, {"n": 1000}, Tier.NUMERIC),
        ({"n": -0.0}, {"n": 0}, Tier.NUMERIC),
        ({"n": [1, {"x": 2.0}]}, {"n": [1.0, {"x": 2}]}, Tier.NUMERIC),
        ({"n": 9007199254740993}, {"n": 9007199254740992.0}, None),
        ({"n": 1}, {"n": 2}, None),
        ({"n": 1}, {"n": True}, None),
        ({"n": 0}, {"n": False}, None),
        ({"n": 1}, {"n": "1"}, None),
        ({"city": "Oslo"}, {"city": "Oslo", "unit": "celsius"}, Tier.DEFAULT),
        ({"city": "Oslo", "days": 1}, {"city": "Oslo", "unit": "celsius"}, Tier.DEFAULT),
        ({"city": "Oslo"}, {"city": "Oslo", "days": 1.0}, Tier.DEFAULT),
        ({"city": "Oslo"}, {"city": "Oslo", "unit": "kelvin"}, None),
        ({"city": "Oslo"}, {"city": "Oslo", "must": 7}, None),
        ({"where": {"x": 1}}, {"where": {"x": 1, "z": 0}}, Tier.DEFAULT),
        ({"where": {"x": 1}}, {"where": {"x": 1, "z": 1}}, None),
        ({"city": "New York", "must": 7}, {"city": "new-york", "must": 7}, Tier.BFCL),
        ({"city": "Oslo", "must": 7}, {"city": "oslo", "unit": "celsius", "must": 7}, Tier.BFCL),
        ({"where": {"x": 1}, "must": 7}, {"where": {"x": 2}, "must": 7}, None),
        ({"items": [{"a": "B"}], "must": 7}, {"items": [{"a": "b"}], "must": 7}, Tier.BFCL),
        ({"city": "", "must": 7}, {"city": ".", "must": 7}, None),
        ({"city": "Oslo", "must": 7}, {"city": "Rome", "must": 7}, None),
        ({"other": "A", "must": 7}, {"other": "a", "must": 7}, None),
        ({"n": 10**400, "must": 7}, {"n": 1.5, "must": 7}, None),
    ],
)
def test_the_strictest_tier_is_found(
    ours: dict[str, Any], theirs: dict[str, Any], tier: Tier | None
) -> None:
    due, calls = (ToolCall("f", ours),), (ToolCall("f", theirs),)
    assert tier_of_calls(due, calls, TOOLS) is tier
    assert tier_of_calls(calls, due, TOOLS) is tier


def test_without_a_schema_nothing_is_filled_in_and_nothing_is_lenient() -> None:
    due = (ToolCall("f", {"city": "Oslo"}),)
    for theirs in ({"city": "Oslo", "unit": "celsius"}, {"city": "oslo"}):
        assert tier_of_calls(due, (ToolCall("f", theirs),)) is None
    hostile = ({"name": "f", "parameters": {"properties": {"city": {"type": ["string"]}}}},)
    assert tier_of_calls(due, (ToolCall("f", {"city": "oslo"}),), hostile) is None
    old = ({"name": "f", "parameters": {"required": True, "properties": {"n": {"default": 1}}}},)
    found = [tier_of_calls(due, (ToolCall("f", {"city": c, "n": 1}),), old) for c in ("Oslo", "a")]
    assert found == [Tier.DEFAULT, None]


def test_parallel_calls_are_sets_in_every_tier() -> None:
    a, b = {"n": 1, "must": 7}, {"n": 2, "must": 7}
    for other, tier in (
        ([b, a], Tier.JSON),
        ([{**b, "n": 2.0}, a], Tier.NUMERIC),
        ([{**b, "unit": "celsius"}, {**a, "n": 1.0}], Tier.DEFAULT),
        ([b], None),
        ([a, a], None),
        ([a, b, b], None),
    ):
        due = tuple(ToolCall("f", arguments) for arguments in (a, b))
        calls = [ToolCall("f", arguments) for arguments in other]
        assert tier_of_calls(due, calls, TOOLS) is tier
    assert tier_of_calls((ToolCall("f", a),), [ToolCall("g", a)], TOOLS) is None


def test_where_values_are_accepted_there_are_two_tiers() -> None:
    parameters = {"properties": {"x": {"type": "string"}}}
    due = (AcceptedCall("f", {"x": ("Oslo", "Bergen")}, parameters),)
    found = [tier_of_calls(due, [ToolCall("f", {"x": x})]) for x in ("Bergen", "bergen", "Rome")]
    assert found == [Tier.JSON, Tier.BFCL, None]


def write(arguments: str, ending: str = "</tool_call>") -> str:
    return f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n{ending}'


def thinks(call: str) -> str:
    """A call that is only thought."""
    return f"<think>{call}</think>No."


@pytest.mark.parametrize(
    ("ours", "theirs", "tier"),
    [
        (write('{"n": 1}'), write('{"n": 1}'), Tier.BYTE),
        (write('{"n": 1}'), "Here: " + write('{"n": 1}'), Tier.BYTE),
        (write('{"n": 1}'), write('{"n":1}'), Tier.JSON),
        (write('{"n": 1.0}'), write('{"n": 1.00}'), Tier.JSON),
        (write('{"n": 1}'), write('{"n": 1e0}'), Tier.NUMERIC),
        (write('{"n": 1}'), write('{"n": 1, "days": 1}'), Tier.DEFAULT),
        (write('{"n": 1}'), write('{"n": 1}', ""), None),
        (write('{"n": 1}', ""), write('{"n": 1}', ""), Tier.BYTE),
        (write("{'n': 1}"), write('{"n": 1,}'), Tier.JSON),
        (write("{'n': 1}"), write('{"n": 1.0,}'), Tier.NUMERIC),
        (write("{'n': 1}"), write('{"n": 2,}'), None),
        (write('{"n": 1}') + write('{"n": 2}'), write('{"n": 2}') + write('{"n": 1}'), Tier.JSON),
        ("No.", "Never.", Tier.BYTE),
        ("<tool_call>oops</tool_call>", "<tool_call>oops</tool_call>", Tier.BYTE),
        ("<tool_call>oops</tool_call>", "<tool_call>ouch</tool_call>", None),
        (write('{"n": 12'), write('{"n": 13'), None),
        ('<tool_call>{"name": "f", "argum', '<tool_call>{"name": "g", "argum', None),
        (write('{"n": 1}') + "<tool_call>a", write('{"n": 1}') + "<tool_call>b", None),
        ("<tool_call>[1]</tool_call>", "<tool_call>[2]</tool_call>", None),
        ("f </tool_call>", "f </tool_call>", Tier.BYTE),
        ("f </tool_call>", "g </tool_call>", None),
        (thinks(write('{"n": 1}')), thinks(write('{"n": 1}')), Tier.BYTE),
        (thinks(write('{"n": 1}')), thinks(write('{"n": 2}')), None),
        ("<think>f", "<think>f", Tier.BYTE),
        ("<think>f", "<think>g", None),
        ("<think>f", "No.", None),
        ("No.", "<think>f", None),
    ],
)
def test_two_replies(ours: str, theirs: str, tier: Tier | None) -> None:
    assert tier_of_replies(answer(ours).reply, answer(theirs).reply, TOOLS) is tier


def test_a_tier_holds_in_every_looser_one() -> None:
    order = list(Tier)
    for i, found in enumerate(order):
        assert [within(found, asked) for asked in order] == [j >= i for j in range(len(order))]
    assert not within(None, Tier.BFCL)


@pytest.mark.parametrize(
    ("theirs", "outcome", "tier"),
    [
        ({"n": 1}, CallOutcome.EXACT, Tier.JSON),
        ({"n": 1.0}, CallOutcome.EQUAL_NUMBERS, Tier.NUMERIC),
        ({"n": 1, "days": 1}, CallOutcome.EQUAL_DEFAULTS, Tier.DEFAULT),
        ({"n": 2}, CallOutcome.ARGUMENTS, None),
    ],
)
def test_the_table_of_outcomes_has_a_word_for_every_tier(
    theirs: dict[str, Any], outcome: CallOutcome, tier: Tier | None
) -> None:
    due = (ToolCall("f", {"n": 1}),)
    found = call_outcome(due, answer(write(json.dumps(theirs))), TOOLS)
    assert found is outcome
    for asked in (Tier.JSON, Tier.NUMERIC, Tier.DEFAULT, Tier.BFCL):
        assert is_right(found, asked) == within(tier, asked)


def as_floats(name: str, right: str) -> str:
    return right.replace(', "unit"', '.0, "unit"') if name.startswith("tool") else right


def with_equality(evidence: Evidence, equality: str) -> Evidence:
    thresholds = evidence.thresholds.model_copy(update={"equality": equality})
    return replace(evidence, thresholds=thresholds)


def outcomes(evidence: Evidence) -> dict[str, Outcome]:
    found = [check_agreement(evidence), *check_behaviour(evidence)]
    return {outcome.check: outcome for outcome in found}


def test_the_gate_is_strict_unless_it_says_otherwise(reference: Reference) -> None:
    evidence = evidence_of(reference, as_floats)
    assert {asked.equality for asked in read_gate(None).classes} == {"json"}
    strict = outcomes(evidence)
    assert strict["tool_calls"].verdict.state is State.FAIL
    assert strict["tool_calls"].verdict.numbers["equality"] == "json"
    assert "arguments equal by tier json" in strict["tool_calls"].verdict.reason
    assert "same calls (json) 100 of 200" in strict["agreement"].verdict.reason
    loose = outcomes(with_equality(evidence, "numeric"))
    assert loose["tool_calls"].verdict.state is State.PASS
    assert loose["agreement"].verdict.state is State.PASS
    assert "same calls (numeric) 200 of 200" in loose["agreement"].verdict.reason
    assert loose["agreement"].verdict.numbers["equality"] == "numeric"


@pytest.mark.parametrize(
    ("edit", "tier"),
    [
        (lambda _, right: right, "byte"),
        (changed(", ", ",", "tool"), "json"),
        (as_floats, "numeric"),
        (changed("1", "3", "tool"), "none"),
        (changed('"f"', '"g"', "tool"), "none"),
    ],
)
def test_the_evidence_counts_pairs_by_tier(reference: Reference, edit: Edit, tier: str) -> None:
    evidence = evidence_of(reference, edit)
    assert evidence.answers is not None
    points = {p.subject: p.values["replies"] for p in check_agreement(evidence).points}
    assert list(points) == [*Tier, "none"]
    assert sum(value or 0 for value in points.values()) == 100
    pairs = list(zip(evidence.reference.answers, evidence.answers, strict=True))
    found = differences(evidence.reference.conversations, pairs)
    if tier == "none":
        assert points["none"] == len([d for d in found if d.calls_differ]) > 0
        assert {d.equal for d in found} == {""}
    else:
        assert points[tier] == 100
        assert {d.equal for d in found} == ({tier} if tier != "byte" else set())


def test_byte_is_no_tier_of_a_gate_since_expected_calls_have_no_bytes() -> None:
    from pydantic import ValidationError

    from verify.gate import Thresholds

    asked = read_gate(None).classes[0].model_dump() | {"equality": "byte"}
    with pytest.raises(ValidationError, match="equality"):
        Thresholds.model_validate(asked)
