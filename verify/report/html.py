"""The report as one HTML file that needs nothing else: no network, no script, light and dark.

In: a `Report`. Out: the text of `report.html`, made by jinja2 from the templates beside this file;
`report.html.j2` is also the page that other packages' reports extend, `parts.html.j2` their parts.
The first screen answers a release manager: what passed, what got worse, by how much, with which
certainty. All else is folded away below, one artifact after another.

Drawings are inline SVG. Those of weights and log-probabilities are in `charts.py`; the one here is
of changes: for every check that states `drop`, `drop_low`, `drop_high` and `margin`, a
line for the interval of the change against the reference, and a mark at the margin. A check without
these numbers is listed with what it has: checks are data, a new one needs no change here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from verify.call_outcomes import CallOutcome
from verify.check import Outcome, State
from verify.differences import Difference
from verify.report.charts import (
    SPANS_WIDTH,
    SQUARE,
    TENSORS_HEIGHT,
    TENSORS_WIDTH,
    span_marks,
    tensor_bars,
    trigger_dots,
)
from verify.report.contents import ArtifactReport, Report
from verify.report.shown import Piece, marked, megabytes, number, percent, points, visible

if TYPE_CHECKING:
    from jinja2 import Template

WORDS = {State.PASS: "pass", State.FAIL: "fail", State.NOT_ENOUGH_EVIDENCE: "not enough evidence"}
DIFFERENCES_SHOWN = 100
PLOT_WIDTH, PLOT_EDGE = 220.0, 6.0
COUNTED = ("agreement", "portability", "served_calls")
"""Checks whose points are counts, shown as a table."""
_TEMPLATE = "report.html.j2"
_DROP = ("drop", "drop_low", "drop_high", "margin")


@dataclass(frozen=True, slots=True)
class Whisker:
    """Places on the plot, in its units from the left: of no change, margin, interval and drop."""

    zero: float
    margin: float
    left: float
    right: float
    middle: float


@dataclass(frozen=True, slots=True)
class Cell:
    """A count in the table of call outcomes; `shade` is 0 for none up to 1."""

    count: int
    same: bool
    shade: float


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with both replies in pieces."""

    difference: Difference
    reference: list[Piece]
    artifact: list[Piece]


def render_html(report: Report) -> str:
    """The whole file."""
    return template(_TEMPLATE).render(
        report=report,
        kinds=list(report.reference.scores.kinds),
        summaries=list(map(summarise, report.artifacts)),
    )


@cache
def template(name: str, package: str = "verify.report") -> Template:
    """A template of this package, or of another that extends it and is made of its parts."""
    import jinja2

    packages = dict.fromkeys((package, "verify.report"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(place, "") for place in packages]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "number": number,
        "megabytes": megabytes,
    }
    environment.globals |= {
        "words": WORDS,
        "shown_differences": DIFFERENCES_SHOWN,
        "checks": lambda artifact: {outcome.check: outcome for outcome in artifact.outcomes},
        "whiskers": whiskers,
        "confusion_rows": confusion_rows,
        "pairs": pairs,
        "tensor_bars": tensor_bars,
        "span_marks": span_marks,
        "trigger_dots": trigger_dots,
        "tensors_width": TENSORS_WIDTH,
        "tensors_height": TENSORS_HEIGHT,
        "spans_width": SPANS_WIDTH,
        "square": SQUARE,
        "plot_width": PLOT_WIDTH,
        "counted": COUNTED,
    }
    return environment.get_template(name)


def summarise(artifact: ArtifactReport) -> str:
    """One sentence: what decides about this artifact."""
    bad = [o for o in artifact.outcomes if o.verdict.state is State.FAIL]
    thin = [o for o in artifact.outcomes if o.verdict.state is State.NOT_ENOUGH_EVIDENCE]
    if bad:
        more = f" and {len(bad) - 1} more failed" if len(bad) > 1 else ""
        return f"{bad[0].check}: {bad[0].verdict.reason}{more}"
    if thin:
        more = f" and {len(thin) - 1} more undecided" if len(thin) > 1 else ""
        return f"{thin[0].check}: {thin[0].verdict.reason}{more}"
    drops = [o for o in artifact.outcomes if _has_drop(o)]
    worst = max(drops, key=lambda o: _float(o, "drop"), default=None)
    if worst is None or _float(worst, "drop") <= 0:
        return "nothing got worse beyond what flips both ways"
    return f"most lost: {worst.check}, {worst.verdict.reason}"


def _has_drop(outcome: Outcome) -> bool:
    return all(isinstance(outcome.verdict.numbers.get(key), (int, float)) for key in _DROP)


def _float(outcome: Outcome, key: str) -> float:
    value = outcome.verdict.numbers[key]
    assert isinstance(value, (int, float))
    return float(value)


def whiskers(artifact: ArtifactReport) -> list[tuple[Outcome, Whisker]]:
    """The checks that can be plotted, on one scale an artifact; better is to the right."""
    drops = [outcome for outcome in artifact.outcomes if _has_drop(outcome)]
    reach = max(
        (abs(_float(o, key)) for o in drops for key in ("drop_low", "drop_high", "margin")),
        default=0.01,
    )

    def place(drop: float) -> float:
        return round(PLOT_WIDTH / 2 - drop / reach * (PLOT_WIDTH / 2 - PLOT_EDGE), 1)

    return [
        (
            outcome,
            Whisker(
                zero=place(0.0),
                margin=place(_float(outcome, "margin")),
                left=place(_float(outcome, "drop_high")),
                right=place(_float(outcome, "drop_low")),
                middle=place(_float(outcome, "drop")),
            ),
        )
        for outcome in drops
    ]


def confusion_rows(
    table: Mapping[str, Mapping[str, int]],
) -> tuple[list[str], list[tuple[str, list[Cell], int]]]:
    """The words that occur, and for each of the reference's a row of cells with its sum."""
    order = [outcome.value for outcome in CallOutcome]
    seen = {*table, *(word for row in table.values() for word in row)}
    words = [word for word in order if word in seen]
    rows = []
    for ours in words:
        row = table.get(ours, {})
        total = sum(row.values())
        if total:
            cells = [Cell(row.get(w, 0), w == ours, round(row.get(w, 0) / total, 3)) for w in words]
            rows.append((ours, cells, total))
    return words, rows


def pairs(found: Sequence[Difference]) -> list[Pair]:
    """The first differing prompts, both replies in marked pieces."""
    shown = found[:DIFFERENCES_SHOWN]
    return [Pair(d, *marked(d.reference, d.artifact)) for d in shown]
