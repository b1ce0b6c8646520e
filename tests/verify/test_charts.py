"""The report's drawings: every mark at the place of its number, and damage where it stands out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.verify.breakages import BREAKAGES
from tests.verify.conftest import evidence
from tests.verify.replies import digits_confused
from tests.verify.test_report import parse, report_of
from verify.artifact import Artifact, Kind, open_artifact
from verify.check import Outcome, Point, State, Verdict
from verify.evidence import Reference
from verify.gguf_weights import check_gguf_weights
from verify.report.charts import (
    SPANS_EDGE,
    SPANS_WIDTH,
    SQUARE,
    SQUARE_EDGE,
    TENSORS_HEIGHT,
    TENSORS_WIDTH,
    span_marks,
    tensor_bars,
    trigger_dots,
)
from verify.report.contents import ArtifactReport, Fit, Report
from verify.report.html import render_html
from verify.summary import fit_report
from verify.weights import check_weights

PASS = Verdict(State.PASS, "fine")


@pytest.fixture
def report(reference: Reference) -> Report:
    return report_of(reference, digits_confused)


def with_outcomes(report: Report, *outcomes: Outcome) -> ArtifactReport:
    return replace(report.artifacts[0], outcomes=outcomes)


def test_a_bar_is_as_high_as_its_error(report: Report) -> None:
    points = (Point("a", {"error": 0.5}), Point("b", {"error": 2.0}), Point("c", {"error": None}))
    bars = tensor_bars(with_outcomes(report, Outcome("gguf_weights", PASS, (), points)))
    assert bars is not None
    assert [(bar.name, bar.height) for bar in bars.bars] == [
        ("a", TENSORS_HEIGHT / 4), ("b", TENSORS_HEIGHT),
    ]  # fmt: skip
    assert (bars.largest.name, bars.largest.value, bars.what) == ("b", 2.0, "relative error")
    assert bars.bars[1].x == TENSORS_WIDTH / 2


def test_the_tensors_that_were_swapped_are_the_tallest_bars(
    report: Report, reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = BREAKAGES["two tensors swapped"].make(reference.folder, artifacts, tmp_path / "x")
    outcome = check_gguf_weights(evidence(reference, path))
    bars = tensor_bars(with_outcomes(report, outcome))
    assert bars is not None
    assert len(bars.bars) == outcome.verdict.numbers["tensors"]
    tallest = sorted(bars.bars, key=lambda bar: -bar.height)
    assert {bar.name for bar in tallest[:2]} == {"blk.0.ffn_up.weight", "blk.1.ffn_up.weight"}
    assert tallest[2].height < TENSORS_HEIGHT / 20
    assert bars.largest.value == outcome.verdict.numbers["worst_error"]


def test_the_row_with_another_scale_is_the_tallest_bar_of_an_fp8_folder(
    report: Report, reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    name = "FP8: a scale of one row off by half"
    path = BREAKAGES[name].make(reference.folder, artifacts, tmp_path / "x")
    outcome = check_weights(evidence(reference, path))
    bars = tensor_bars(with_outcomes(report, outcome))
    assert bars is not None
    assert bars.largest.name == "model.layers.0.mlp.down_proj.weight"
    assert bars.largest.value == outcome.verdict.numbers["worst_ratio"]
    others = [bar.value for bar in bars.bars if bar is not bars.largest]
    assert max(others) <= 1 < bars.largest.value


def test_spans_are_placed_on_one_scale_and_those_beyond_the_limit_are_marked(
    report: Report,
) -> None:
    numbers = {
        "span_limit": 0.1,
        "number_kl": 0.4, "number_kl_low": 0.2, "number_kl_high": 1.0, "number_kl_tokens": 40,
        "key_kl": 0.001, "key_kl_low": -1e-9, "key_kl_high": 0.01, "key_kl_tokens": 9,
        "name_kl": 0.05, "name_kl_low": None, "name_kl_high": None, "name_kl_tokens": 3,
    }  # fmt: skip
    verdict = Verdict(State.FAIL, "far", numbers)
    spans = span_marks(with_outcomes(report, Outcome("reply_kl", verdict)))
    assert spans is not None
    room = SPANS_WIDTH - 2 * SPANS_EDGE
    by_name = {mark.name: mark for mark in spans.marks}
    assert list(by_name) == ["name", "key", "number"]
    # six powers of ten, from 1e-6 to the largest end of an interval
    assert by_name["key"].middle == pytest.approx(SPANS_EDGE + room / 2, abs=0.1)
    assert by_name["key"].left == SPANS_EDGE
    assert by_name["number"].right == pytest.approx(SPANS_EDGE + room, abs=0.1)
    assert spans.limit == pytest.approx(SPANS_EDGE + room * 5 / 6, abs=0.1)
    assert [mark.beyond for mark in spans.marks] == [False, False, True]
    assert by_name["name"].left == by_name["name"].middle == by_name["name"].right


def test_a_decision_that_turned_lies_off_the_diagonal_quadrants(report: Report) -> None:
    points = (
        Point("kept", {"reference": 4.0, "artifact": 2.0}),
        Point("lost", {"reference": 1.0, "artifact": -1.0}),
        Point("not stated", {"reference": 1.0, "artifact": None}),
    )
    scatter = trigger_dots(with_outcomes(report, Outcome("trigger", PASS, (), points)))
    assert scatter is not None
    assert [(dot.name, dot.turned) for dot in scatter.dots] == [("kept", False), ("lost", True)]
    kept, lost = scatter.dots
    assert (scatter.reach, scatter.turned) == (4.0, 1)
    assert kept.x == SQUARE - SQUARE_EDGE
    assert kept.y == pytest.approx(SQUARE / 2 - (SQUARE / 2 - SQUARE_EDGE) / 2)
    assert lost.x > SQUARE / 2
    assert lost.y > SQUARE / 2  # down is negative


def test_without_the_checks_nothing_is_drawn(report: Report) -> None:
    bare = with_outcomes(report)
    assert (tensor_bars(bare), span_marks(bare), trigger_dots(bare)) == (None, None, None)
    empty = Verdict(State.NOT_ENOUGH_EVIDENCE, "none")
    silent = with_outcomes(
        report,
        Outcome("gguf_weights", empty),
        Outcome("reply_kl", empty),
        Outcome("trigger", empty),
    )
    assert (tensor_bars(silent), span_marks(silent), trigger_dots(silent)) == (None, None, None)


def test_every_drawing_is_on_the_page_with_words_for_who_cannot_see_it(report: Report) -> None:
    numbers = {"span_limit": 0.1, "number_kl": 0.4, "number_kl_low": 0.2, "number_kl_high": 0.5}
    artifact = with_outcomes(
        report,
        Outcome("gguf_weights", PASS, (), (Point("<b>", {"error": 0.25}),)),
        Outcome("reply_kl", Verdict(State.FAIL, "far", numbers)),
        Outcome("trigger", PASS, (), (Point("c", {"reference": 1.0, "artifact": -1.0}),)),
    )
    html = render_html(replace(report, artifacts=(artifact,)))
    assert parse(html).tags["svg"] == html.count('role="img"') == 3
    for words in (
        "1 tensors, relative error at most 0.25",
        "number: 0.4 nats, interval 0.2 to 0.5",
        "Margins of 1 first decisions; 1 turned",
    ):
        assert f'aria-label="{words}' in html
    assert "&lt;b&gt;: 0.25" in html
    assert not re.search(r"\b(nan|inf)\b", html)


def test_size_and_the_smallest_gpu_are_on_the_first_screen(report: Report) -> None:
    def first_screen(fit: Fit | None) -> str:
        artifact = replace(report.artifacts[0], fit=fit)
        text = " ".join(parse(render_html(replace(report, artifacts=(artifact,)))).text.split())
        return text[: text.index("What this suite can show")]

    shown = first_screen(Fit(8192, 2, "NVIDIA H100 80GB"))
    for words in ("123.5 MB", "2 x NVIDIA H100 80GB", "at 8,192 tokens"):
        assert words in shown
    assert "no GPU of the table" in first_screen(Fit(8192, 8, None))
    assert " tokens" not in first_screen(None)


def test_what_fit_says_of_an_artifact(artifacts: dict[str, Path], tmp_path: Path) -> None:
    for path in (artifacts["Q8_0"], artifacts["FP8_DYNAMIC"]):
        found = fit_report(open_artifact(path))
        assert found is not None
        assert found.gpus == 1
        assert found.gpu is not None
    (tmp_path / "cut.gguf").write_bytes(artifacts["Q8_0"].read_bytes()[:100])
    assert fit_report(Artifact(tmp_path / "cut.gguf", Kind.GGUF, "unknown", 100)) is None
