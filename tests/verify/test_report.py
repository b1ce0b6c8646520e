"""The report: every number recomputed, hostile replies harmless, all forms well-formed."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator
from rich.console import Console
from scipy.stats import binom

from tests.verify.replies import Edit, always, call, digits_confused, evidence_of, suite
from verify import report as package
from verify.agreement import check_agreement
from verify.artifact import open_artifact
from verify.behaviour import check_behaviour
from verify.call_outcomes import confusion
from verify.check import Finding, Outcome, State, Verdict, total_state
from verify.differences import differences
from verify.engines.scripted import INFO
from verify.equality import Tier
from verify.evidence import Reference
from verify.pair_outcomes import count_pairs
from verify.portability import check_portability
from verify.report.contents import (
    ArtifactReport,
    Detectable,
    GateReport,
    ReferenceReport,
    Report,
    Scores,
    SuiteReport,
)
from verify.report.html import render_html
from verify.report.junit import render_junit
from verify.report.shown import Piece, marked, points, visible
from verify.report.terminal import print_report
from verify.report.write import write_report
from verify.statistics import Rate
from verify.strata import strata

SCHEMA = json.loads((Path(package.__path__[0]) / "report.schema.json").read_text())
HOSTILE = '<script>alert("x")</script></pre><img src=x onerror=y>\x1b[2J\x00\ud800\u202e&amp;\r\n'
VOID = {"meta", "br", "link", "img", "input", "hr", "source"}


def right_reply(_: str, right: str) -> str:
    return right


def report_of(reference: Reference, *edits: Edit, first: Edit = right_reply) -> Report:
    """A report on artifacts that answer by `edits`, against a reference that answers by `first`."""
    artifacts = []
    for number, edit in enumerate(edits):
        evidence = evidence_of(reference, edit, first)
        assert evidence.answers is not None
        pairs = list(zip(evidence.reference.answers, evidence.answers, strict=True))
        outcomes = [check_agreement(evidence), *check_behaviour(evidence)]
        portability = check_portability(evidence)
        outcomes += [portability] if portability else []
        artifacts.append(
            ArtifactReport(
                name=f"m-{number}.gguf",
                kind="gguf",
                type="Q5_K_M",
                size_bytes=123_456_789,
                gate_class="four bits",
                state=total_state(o.verdict.state for o in outcomes),
                outcomes=tuple(outcomes),
                engine=INFO,
                scores=Scores({"calls": Rate(90, 100)}, Rate(1, 500), Rate(0, 500), Rate(0, 500)),
                seconds=1.5,
                confusion=confusion(evidence.reference.conversations, pairs),
                differences=tuple(differences(evidence.reference.conversations, pairs)),
                strata=strata(evidence.reference.conversations, pairs, Tier.JSON),
                pairs=count_pairs(evidence.reference.conversations, pairs, Tier.JSON),
            )
        )
    scores = Scores({"calls": Rate(100, 100)}, Rate(0, 500), Rate(0, 500), Rate(0, 500))
    return Report(
        "hermes-quant 0",
        SuiteReport("suite", "0" * 64, 500, 500, 200, {}, (Detectable(0.05, 0.039),)),
        GateReport("no evidence about Hermes", {"Q5_K_M": {"class": "four bits"}}),
        256,
        ReferenceReport("mini", INFO, scores, 2.0),
        tuple(artifacts),
    )


class Strict(HTMLParser):
    """Every tag closed in order, every attribute once, every id once; keeps text and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes)
        self.tags[tag] += 1
        for name, value in attributes:
            assert not name.startswith("on"), name
            self.ids.update([value or ""] if name == "id" else [])
            self.links += [value or ""] if name in ("href", "src") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


def numbers_of(report: Report, check: str) -> dict[str, Any]:
    content = json.loads(json.dumps(report.to_dict()))
    (found,) = (o for o in content["artifacts"][0]["outcomes"] if o["check"] == check)
    numbers: dict[str, Any] = found["verdict"]["numbers"]
    return numbers


def test_every_number_recomputed(reference: Reference) -> None:
    """From the replies' text alone, with formulas written down here a second time."""
    report = report_of(reference, digits_confused)
    rows = [(c, right, digits_confused(c.id, right)) for c, right in suite()]
    tool = [(right, reply) for c, right, reply in rows if c.id.startswith("tool")]
    worse = sum(right != reply for right, reply in tool)
    n, same = len(tool), len(tool) - worse
    z = 1.959963984540054

    def wilson(hits: int, total: int, z: float) -> tuple[float, float]:
        p = hits / total
        centre = (p + z * z / 2 / total) / (1 + z * z / total)
        half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + (z / 2 / total) ** 2)
        return centre - half, centre + half

    one = 1.6448536269514722
    calls = numbers_of(report, "tool_calls")
    assert (calls["prompts"], calls["reference_right"], calls["artifact_right"]) == (n, n, same)
    assert (calls["worse"], calls["better"]) == (worse, 0)
    assert calls["drop"] == pytest.approx(worse / n)
    # Flips to one side only: Tango's upper end is Wilson's of that share.
    assert calls["drop_high"] == pytest.approx(wilson(worse, n, one)[1], abs=1e-6)
    assert calls["drop_low"] == pytest.approx(wilson(worse, n, one)[0], abs=1e-6)
    assert calls["mcnemar_p"] == pytest.approx(2 * binom.cdf(0, worse, 0.5))
    assert calls["margin"] == 0.04
    share, margin = worse / n, 0.04
    power = (one + 0.8416212335729143) ** 2 * share / margin**2
    assert calls["prompts_needed"] == math.ceil(max(power, one**2 * (1 - margin) / margin))
    # One of two arguments is lost where a seven became a one.
    assert calls["arguments_kept"] == pytest.approx(1 - worse / n / 2)
    assert calls["arguments_kept_low"] < calls["arguments_kept"] < calls["arguments_kept_high"]

    agreement = numbers_of(report, "agreement")
    assert agreement["with_tools"] == 2 * n
    assert agreement["same_calls"] == 2 * n - worse
    assert agreement["same_calls_rate"] == pytest.approx((2 * n - worse) / (2 * n))
    low, high = wilson(2 * n - worse, 2 * n, z)
    assert agreement["same_calls_low"] == pytest.approx(low)
    assert agreement["same_calls_high"] == pytest.approx(high)
    score = ((2 * n - worse) / (2 * n) - 0.75) / math.sqrt(0.75 * 0.25)
    assert agreement["prompts_needed"] == math.ceil((z / score) ** 2)
    assert agreement["same_calls_cut_off"] == 0
    assert agreement["conversations"] == len(rows)
    assert agreement["same_text"] == sum(right == reply for _, right, reply in rows)
    low, high = wilson(agreement["same_text"], len(rows), z)
    assert agreement["same_text_low"] == pytest.approx(low)
    assert agreement["same_text_high"] == pytest.approx(high)

    for check, prompts in {
        "lost_calls": n, "spurious_calls": n, "malformed_calls": 2 * n, "json_mode": n,
        "same_json": n, "wrong_refusals": 4 * n, "missing_refusals": n,
    }.items():  # fmt: skip
        found = numbers_of(report, check)
        assert (found["prompts"], found["worse"], found["better"]) == (prompts, 0, 0), check
        assert found["reference_right"] == found["artifact_right"] == prompts
        assert (found["drop"], found["mcnemar_p"]) == (0, 1)
        bound = one**2 / (prompts + one**2)
        assert (found["drop_low"], found["drop_high"]) == pytest.approx((-bound, bound), abs=1e-6)

    artifact = report.to_dict()["artifacts"][0]
    assert artifact["confusion"] == {
        "exact call": {"exact call": same, "other arguments": worse},
        "no call": {"no call": n},
    }
    assert artifact["pairs"] == {
        **dict.fromkeys(artifact["pairs"], 0),
        "identical": len(rows) - worse, "different arguments": worse,
    }  # fmt: skip
    assert len(artifact["differences"]) == worse
    assert {found["pair"] for found in artifact["differences"]} == {"different arguments"}
    text = " ".join(parse(render_html(report)).text.split())
    assert f"\u2212{100 * worse / n:.1f}" in text
    assert f"{worse} / 0" in text
    assert "What the artifact made of the reference's replies" in text
    none = "\u00b7"
    row = f"noanswerall{len(rows) - worse}{none * 2}{worse}{none * 6}{len(rows)}"
    assert row in text.replace(" ", "")
    assert f"{100 * agreement['same_calls_rate']:.1f}" in text


def test_the_json_keeps_to_its_schema(reference: Reference) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    content = json.loads(json.dumps(report_of(reference, digits_confused).to_dict()))
    Draft202012Validator(SCHEMA).validate(content)
    content["artifacts"][0]["verdict"] = "pass"
    assert not Draft202012Validator(SCHEMA).is_valid(content)


def test_hostile_replies_are_text_in_every_form(reference: Reference, tmp_path: Path) -> None:
    report = report_of(reference, always(HOSTILE, "tool"))
    first = report.artifacts[0]
    bad = Outcome("made_up", Verdict(State.FAIL, HOSTILE), (Finding(HOSTILE, HOSTILE),))
    first = replace(first, name=HOSTILE, outcomes=(*first.outcomes, bad))
    report = replace(report, artifacts=(first,), gate=GateReport(HOSTILE, {}))
    write_report(report, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = parse(html)
    assert not {"script", "img"} & parsed.tags.keys()
    assert 'alert("x")' in parsed.text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e\ud800-\udfff]", html)
    assert "\\x1b[2J" in parsed.text
    assert "\\ud800" in parsed.text
    assert json.loads((tmp_path / "report.json").read_text())["artifacts"][0]["name"] == HOSTILE
    root = ElementTree.fromstring((tmp_path / "junit.xml").read_text(encoding="utf-8"))
    assert "\\x1b" in (root[0].get("name") or "")
    console = Console(record=True, width=100, file=(tmp_path / "out").open("w", encoding="utf-8"))
    print_report(report, console)
    assert "\x1b[2J" not in console.export_text()


def test_the_page_needs_nothing_else_and_can_be_read_by_everyone(reference: Reference) -> None:
    html = render_html(report_of(reference, digits_confused, lambda _, right: right))
    parsed = parse(html)
    assert html.startswith("<!doctype html>\n<html lang=")
    assert not {"script", "link", "img", "iframe", "object"} & parsed.tags.keys()
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert set(parsed.ids.values()) == {1}
    assert not re.search(r"url\(|@import|https?://", html)
    assert "prefers-color-scheme: dark" in html
    assert parsed.tags["svg"] == html.count('role="img"') == html.count("<svg role") > 0
    assert (parsed.tags["h1"], parsed.tags["main"], parsed.tags["header"]) == (1, 1, 1)
    assert html.count("<th scope=") == parsed.tags["th"]


def test_what_decides_is_on_the_first_screen(reference: Reference) -> None:
    report = report_of(reference, digits_confused)
    text = " ".join(parse(render_html(report)).text.split())
    top = text[: text.index("What this suite can show")]
    assert "mini: fail" in top
    assert "123.5 MB" in top
    assert "tool_calls: exact calls:" in top
    assert "no evidence about Hermes" in top


def test_two_files_of_one_name_keep_their_own_sentences(reference: Reference) -> None:
    report = report_of(reference, digits_confused)
    why = Outcome("structure", Verdict(State.FAIL, "cut short"))
    other = replace(report.artifacts[0], outcomes=(why,), engine=None, scores=None, confusion={})
    assert other.name == report.artifacts[0].name
    report = replace(report, artifacts=(report.artifacts[0], other))
    text = parse(render_html(report)).text
    top = text[: text.index("What this suite can show")]
    assert top.count("tool_calls: exact calls:") == 1
    assert top.count("structure: cut short") == 1


def test_an_artifact_in_the_cache_of_the_hub_has_its_own_name(
    tmp_path: Path, made: dict[str, Path]
) -> None:
    blob = shutil.copy(made["Q8_0"], tmp_path / "0a1b2c")
    link = tmp_path / "nano-Q8_0.gguf"
    link.symlink_to(blob)
    assert open_artifact(link).name == link.name


def test_a_check_that_is_not_known_here_is_shown_with_all_it_has(reference: Reference) -> None:
    report = report_of(reference, digits_confused)
    new = Outcome(
        "first_token",
        Verdict(State.PASS, "sign kept", {"flips": 3, "mean_kl": 0.00123, "none": None, "w": "x"}),
        (Finding("single-0001", "margin 0.2 became -0.1"),),
    )
    report = replace(report, artifacts=(replace(report.artifacts[0], outcomes=(new,)),))
    text = " ".join(parse(render_html(report)).text.split())
    for word in ("first_token: sign kept", "mean_kl", "0.00123", "margin 0.2 became -0.1"):
        assert word in text


def test_an_artifact_that_was_not_run_has_a_page_too(reference: Reference) -> None:
    report = report_of(reference, digits_confused)
    why = Outcome("structure", Verdict(State.FAIL, "cut"), (Finding("f", "truncated"),))
    first = replace(
        report.artifacts[0], engine=None, scores=None, outcomes=(why,), confusion={},
        differences=(), size_bytes=0, not_checked=("structure",), not_measured=("json_mode",),
    )  # fmt: skip
    text = parse(render_html(replace(report, artifacts=(first,)))).text
    for word in ("not run", "truncated", "not checked", "json_mode"):
        assert word in text


def test_junit_counts_what_is_undecided_as_an_error_never_as_skipped(reference: Reference) -> None:
    report = report_of(reference, digits_confused)
    root = ElementTree.fromstring(render_junit("hermes-quant 0 verify", report.artifacts))
    states = Counter(o.verdict.state for o in report.artifacts[0].outcomes)
    assert root.get("tests") == str(states.total())
    assert root.get("failures") == str(states[State.FAIL])
    assert root.get("errors") == str(states[State.NOT_ENOUGH_EVIDENCE])
    assert states[State.FAIL]
    assert states[State.NOT_ENOUGH_EVIDENCE]
    assert len(root.findall(".//failure")) == states[State.FAIL]
    assert not root.findall(".//skipped")
    (calls,) = (case for case in root.iter("testcase") if case.get("name") == "tool_calls")
    assert "tool-" in (calls[0].text or "")


def test_a_report_replaces_an_earlier_one_and_nothing_else(
    reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.html").write_text("old")
    write_report(report_of(reference, digits_confused), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "junit.xml", "notes.txt", "report.html", "report.json",
    ]  # fmt: skip
    assert "old" not in (tmp_path / "report.html").read_text()[:10]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("", ""), ("a", ""), ("", "b"), ("abc", "abd"), (call(1234), call(1284)),
        ("x" * 5000 + "1", "x" * 5000 + "2"), ("a" * 1500, "a" * 1501), ("ab" * 700, "ba" * 700),
    ],
)  # fmt: skip
def test_marked_pieces_make_up_both_texts(a: str, b: str) -> None:
    first, second = marked(a, b)
    for pieces, text in ((first, a), (second, b)):
        joined = "".join(piece.text for piece in pieces)
        assert joined.startswith(text[:4000])
    equal = "".join(piece.text for piece in first if not piece.differs)
    if len(a) < 1000:
        assert equal == "".join(piece.text for piece in second if not piece.differs)


def test_only_the_differing_characters_are_marked() -> None:
    first, second = marked(call(1234), call(1284))
    assert [piece for piece in first if piece.differs] == [Piece("3", True)]
    assert [piece for piece in second if piece.differs] == [Piece("8", True)]


def test_a_sentence_in_place_of_a_call_is_marked_whole() -> None:
    first, second = marked(call(1234), "None of these tools fits this request.")
    assert [piece.differs for piece in (*first, *second)] == [True, True]


def test_a_change_is_signed_as_a_change() -> None:
    assert [points(value) for value in (0.02, -0.013, 0.0, 0.0001, None)] == [
        "\u22122.0", "+1.3", "0.0", "0.0", "\u2013",
    ]  # fmt: skip


def test_line_breaks_stay_and_what_does_not_show_itself_is_written_out() -> None:
    assert visible("a\nb\x00\x1b\ud800\u202e\r") == "a\nb\\x00\\x1b\\ud800\\u202e\\r"
