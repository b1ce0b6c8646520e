"""The gate's report as one HTML file, made of the page and the parts of `verify`'s own report.

In: a `GateReport`, and the measurement and selection that the edit came from, if they are at hand.
Out: the text of `report.html`: no network, no script, light and dark. Plots are drawn by matplotlib
twice, once for either, and embedded as PNG; where it is missing, the report says so.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from io import BytesIO

from quantize.abliteration.measurement import Measurement
from quantize.abliteration.plots import (
    DARK,
    DPI,
    LIGHT,
    Theme,
    Where,
    can_plot,
    plot_projection,
    plot_ranking,
    plot_separation,
)
from quantize.abliteration.selection import Selection
from verify.abliteration.contents import GateReport, PairReport
from verify.abliteration.plot import plot_scores
from verify.abliteration.print_gate import statement
from verify.check import Point
from verify.report.contents import ArtifactReport
from verify.report.html import summarise, template

WORST = 10
"""Tensors of which the report tells the residue; all are in report.json."""


@dataclass(frozen=True, slots=True)
class Found:
    """What `measure` and `select` found, for the report's first plots."""

    measurement: Measurement
    selection: Selection


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot as PNG in base64, for a light page and a dark one."""

    title: str
    caption: str
    light: str
    dark: str
    width: int
    height: int


def render_gate(report: GateReport, found: Found | None = None) -> str:
    """The whole file."""
    drawn = can_plot()
    return template("abliteration.html.j2", "verify.abliteration").render(
        report=report,
        statement=statement(report),
        summary={pair.artifact.name: summarise(pair.artifact) for pair in report.pairs},
        found=found,
        drawn=drawn,
        pictures=list(_pictures(found)) if drawn and found else [],
        scores=[_scores(pair) if drawn and pair.scores else None for pair in report.pairs],
        worst=worst_residues,
        limits=asdict(report.limits),
    )


def worst_residues(artifact: ArtifactReport) -> list[Point]:
    """The tensors farthest from what was meant; one without a number is farther than any."""
    points = [p for o in artifact.outcomes if o.check == "residue" for p in o.points]
    ratios = {p.subject: p.values["ratio"] for p in points}
    points.sort(key=lambda p: (ratios[p.subject] is not None, -(ratios[p.subject] or 0)))
    return points[:WORST]


def _pictures(found: Found) -> Iterator[Picture]:
    measurement, selection = found.measurement, found.selection
    yield _picture(
        "Separation by layer",
        "How far the means of both classes lie apart, in spreads of the prompts within them; one"
        " line a token after the user\u2019s text.",
        lambda where, theme: plot_separation(measurement, where, theme),
    )
    yield _picture(
        "Candidates",
        "One point a candidate: further down, fewer refusals; further left, less damage. Hollow:"
        " something speaks against it.",
        lambda where, theme: plot_ranking(selection, where, theme),
    )
    if (seen := selection.projection) is not None:
        yield _picture(
            "The stream along the direction, before and after",
            "The last token\u2019s residual stream, layer by layer; after: with the direction taken"
            " out of what every block adds. Lines: medians over prompts kept for choosing; bands:"
            " eight of ten.",
            lambda where, theme: plot_projection(seen, where, theme),
        )


def _scores(pair: PairReport) -> Picture:
    return _picture(
        "Refusal before and after",
        "One point a prompt; right of the line its reply more likely begins as a refusal than not.",
        lambda where, theme: plot_scores([pair], where, theme),
    )


def _picture(title: str, caption: str, draw: Callable[[Where, Theme], None]) -> Picture:
    drawn = []
    for theme in (LIGHT, DARK):
        stream = BytesIO()
        draw(stream, theme)
        drawn.append(stream.getvalue())
    # a PNG begins with 16 bytes that do not vary, then its width and height in pixels, big-endian
    width, height = (int.from_bytes(drawn[0][i : i + 4]) * 96 // DPI for i in (16, 20))
    light, dark = (base64.b64encode(png).decode() for png in drawn)
    return Picture(title, caption, light, dark, width, height)
