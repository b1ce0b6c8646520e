"""Properties of calls as written: each is seen lacking on its damage, and fails the gate there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from convert.errors import InputError
from convert.yaml_file import read_yaml
from tests.verify.replies import PER_KIND, Edit, always, answer, call, evidence_of
from verify.call_form import Form, lacking, writes_calls
from verify.check import Outcome, State
from verify.evidence import Reference
from verify.portability import TABLE, Needs, check_portability, needs_table

DOCS = Path(__file__).parents[2] / "docs" / "tool-calls.md"
OFFERED = {"f"}
SPECIAL = {"</s>", "[EOT]"}
DAMAGE: dict[str, tuple[Callable[[str], str], set[Form]]] = {
    "arguments first": (
        lambda text: re.sub(r'("name": "f"), (.*)}\n', r"\2, \1}\n", text),
        {Form.NAME_FIRST},
    ),
    "no line break after the tag": (
        lambda text: text.replace("<tool_call>\n", "<tool_call>"),
        {Form.NEWLINE},
    ),
    "a space before the line break": (
        lambda text: text.replace("<tool_call>\n", "<tool_call> \n"),
        {Form.NEWLINE},
    ),
    "two objects in one tag": (
        lambda text: re.sub(r"(\{.*\})", r"\1\n\1", text),
        {Form.ONE_OBJECT},
    ),
    "a list in one tag": (lambda text: re.sub(r"(\{.*\})", r"[\1]", text), {Form.ONE_OBJECT}),
    "Python's quotes": (lambda text: text.replace('"', "'"), {Form.STRICT_JSON}),
    "a trailing comma": (lambda text: text.replace("}}", "},}"), {Form.STRICT_JSON}),
    "one bracket too many": (lambda text: text.replace("}}", "}}}"), {Form.STRICT_JSON}),
    "a fence": (lambda text: re.sub(r"(\{.*\})", r"```\n\1\n```", text), {Form.STRICT_JSON}),
    "NaN": (lambda text: re.sub(r"\d+", "NaN", text), {Form.STRICT_JSON}),
    "cut off in a string": (lambda text: text[: text.index("mm")], {Form.STRICT_JSON, Form.CLOSED}),
    "no closing tag": (lambda text: text.removesuffix("</tool_call>"), {Form.CLOSED}),
    "arguments as text": (
        lambda text: re.sub(r'"arguments": \{.*?\}', '"arguments": "{}"', text),
        {Form.ARGUMENTS},
    ),
    "no arguments": (lambda text: re.sub(r', "arguments": \{.*?\}', "", text), {Form.ARGUMENTS}),
    "parameters for arguments": (
        lambda text: text.replace("arguments", "parameters"),
        {Form.ARGUMENTS},
    ),
    "a function nobody offered": (
        lambda text: text.replace('"f"', '"evaluate"'),
        {Form.OFFERED},
    ),
    "a list for the function's name": (
        lambda text: text.replace('"f"', '["f"]'),
        {Form.OFFERED},
    ),
    "a sentence after it": (lambda text: text + "\nDone.", {Form.LAST}),
    "text between two calls": (lambda text: f"{text}\nand\n{text}", {Form.LAST}),
    "the turn's end left over": (lambda text: text + "<|eot_id|>", {Form.LAST, Form.CLEAN}),
    "the model's own control token": (lambda text: "[EOT]" + text, {Form.CLEAN}),
    "a reasoning tag left over": (lambda text: "So</think>" + text, {Form.CLEAN}),
    "a closing tag left over": (lambda text: text + "</tool_call>", {Form.LAST, Form.CLEAN}),
    "a closing tag in a string": (
        lambda text: text.replace("mm", "</tool_call>"),
        {Form.NO_CLOSING_TAG, Form.NO_MARKUP},
    ),
    "an ampersand in a string": (lambda text: text.replace("mm", "m & m"), {Form.NO_MARKUP}),
    "a call that is thought first": (
        lambda text: f"<think>{text}</think>\n{text}",
        {Form.NOT_THOUGHT},
    ),
    "a call that is only thought": (lambda text: f"<think>{text}", {Form.NOT_THOUGHT}),
}
"""Ways to write the same call, and what each lacks; nothing else is lacking."""


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_lacks_its_own_property_and_no_other(name: str) -> None:
    damage, expected = DAMAGE[name]
    damaged = damage(call(1234))
    assert damaged != call(1234)
    assert lacking(answer(damaged), OFFERED, SPECIAL) == expected


@pytest.mark.parametrize(
    "text",
    [
        call(1),
        "First.\n" + call(1),
        call(1) + "\n" + call(2) + "\n",
        "<think>which?</think>\n" + call(1),
        "<scratch_pad>f</scratch_pad>" + call(1),
        call(1).replace('"n": 1', '"name": "f", "x": "{\\"", "y": 1, "y": 2'),
        "No call.",
        "No call <|im_end|>.",
        "",
    ],
)
def test_what_every_engine_reads_lacks_nothing(text: str) -> None:
    assert lacking(answer(text), OFFERED, SPECIAL) == frozenset()


def test_every_property_has_a_damage_and_an_engine_that_needs_it() -> None:
    assert {form for _, expected in DAMAGE.values() for form in expected} == {*Form}
    assert {form for engine in needs_table().engines for form in engine.needs} == {*Form}


def portability(reference: Reference, edit: Edit) -> Outcome:
    found = check_portability(evidence_of(reference, edit))
    assert found is not None
    return found


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_fails_the_gate_and_names_the_engines_it_hurts(
    reference: Reference, name: str
) -> None:
    damage, expected = DAMAGE[name]
    if name == "the model's own control token":
        control = next(iter(reference.tokenizer.special_tokens.values()))
        damage = lambda text: control + text  # noqa: E731
    found = portability(
        reference, lambda n, right: damage(right) if n.startswith("tool") else right
    )
    assert found.verdict.state is State.FAIL
    assert {finding.subject for finding in found.findings} == {form.value for form in expected}
    for finding in found.findings:
        assert f"lost in {PER_KIND} of {PER_KIND} replies" in finding.message
        assert "(reference has it in 100, artifact in 0), first tool-0" in finding.message
        for engine in needs_table().engines:
            assert (engine.name + " " in finding.message) == (finding.subject in engine.needs)
    counts = {point.subject: point.values for point in found.points}
    assert {name for name, values in counts.items() if values["lost"]} == {*expected}
    assert found.verdict.numbers["worst"] in {*expected}
    assert found.verdict.numbers["worse"] == PER_KIND


def test_few_damaged_replies_are_shown_and_decide_nothing(reference: Reference) -> None:
    found = portability(reference, lambda n, right: right + "\nOk." if n == "tool-7" else right)
    assert found.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "prompts needed" in found.verdict.reason
    (finding,) = found.findings
    assert finding.subject == Form.LAST
    assert "lost in 1 of 100 replies" in finding.message
    assert "first tool-7" in finding.message


def test_what_the_reference_lacks_too_is_not_lost_but_counted(reference: Reference) -> None:
    def both(name: str, right: str) -> str:
        return right + "\nDone." if name.startswith("tool") else right

    found = check_portability(evidence_of(reference, both, first=both))
    assert found is not None
    assert found.findings == ()
    (counts,) = (point.values for point in found.points if point.subject == Form.LAST)
    assert counts == {"reference": 0, "artifact": 0, "lost": 0, "gained": 0}
    better = check_portability(evidence_of(reference, lambda _, right: right, first=both))
    assert better is not None
    (counts,) = (point.values for point in better.points if point.subject == Form.LAST)
    assert counts["gained"] == PER_KIND


def test_a_call_that_is_not_made_is_no_fault_of_writing(reference: Reference) -> None:
    found = portability(reference, always("I would rather not.", "tool"))
    assert found.verdict.state is not State.FAIL
    assert found.findings == ()


def test_without_a_call_of_the_reference_nothing_is_measured(reference: Reference) -> None:
    none = always("No.", "tool")
    assert check_portability(evidence_of(reference, lambda _, right: right, first=none)) is None
    assert not writes_calls(answer("No."))


def test_the_table_is_complete_and_the_page_shows_it() -> None:
    page = " ".join(DOCS.read_text().split())
    for engine in needs_table().engines:
        needs = ", ".join(f"`{form}`" for form in Form if form in engine.needs)
        assert f"| {engine.name} | {engine.version} | {needs} |" in page
    assert f"version {needs_table().version} of the table" in page


def test_a_property_that_no_engine_needs_is_refused(tmp_path: Path) -> None:
    content = yaml.safe_load(TABLE.read_text())
    for engine in content["engines"]:
        engine["needs"].pop("newline_after_tag", None)
    content["engines"] = [engine for engine in content["engines"] if engine["needs"]]
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="no engine needs newline_after_tag"):
        read_yaml(path, Needs)


def test_hostile_replies_take_linear_time() -> None:
    import time

    for body in ("{}" * 50_000, '{"a":' * 20_000, "<|" * 50_000, "[" * 50_000, '"' * 100_001):
        begin = time.process_time()
        lacking(answer(f"<tool_call>{body}</tool_call>{body}"), OFFERED, SPECIAL)
        assert time.process_time() - begin < 3, body[:9]


def test_the_numbers_are_those_of_the_property_that_decides(reference: Reference) -> None:
    """Two properties drop alike; only the one without flips to the other side is sure to."""

    def late(name: str, right: str) -> str:
        return right + "\nOk."

    def number(name: str) -> int:
        return int(name.split("-")[1]) if name.startswith("tool") else PER_KIND

    def ours(name: str, right: str) -> str:
        return late(name, right) if 20 <= number(name) < 32 else right

    def theirs(name: str, right: str) -> str:
        unclosed = right.removesuffix("</tool_call>") if 40 <= number(name) < 48 else right
        return late(name, unclosed) if number(name) < 20 else unclosed

    found = check_portability(evidence_of(reference, theirs, first=ours))
    assert found is not None
    drops = {p.subject: (p.values["lost"], p.values["gained"]) for p in found.points}
    assert (drops[Form.CLOSED], drops[Form.LAST]) == ((8, 0), (20, 12))
    numbers = found.verdict.numbers
    assert (found.verdict.state, numbers["worst"]) == (State.FAIL, Form.CLOSED)
    assert numbers["drop_low"] > numbers["margin"]  # type: ignore[operator]
    assert "most: closing_tag, 8 lost" in found.verdict.reason
