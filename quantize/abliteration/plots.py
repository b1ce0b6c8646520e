"""Plots of a measurement and of a selection, as PNG files beside them and inside reports.

    separation.png   how far the means of refused and harmless prompts lie apart, by place and token
    projection.png   the stream along the best candidate's direction, with it and without it
    ranking.png      every candidate: refusal score without it against KL on harmless prompts

matplotlib is loaded here (`pip install 'hermes-quant[plot]'`); where it is missing, nothing is
drawn and `can_plot` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.terminal import warn
from quantize.abliteration.candidates import BY_LAYER, RANDOM, SINGLE
from quantize.abliteration.measurement import Measurement
from quantize.abliteration.projection import Projection
from quantize.abliteration.ranked import KL_LIMIT
from quantize.abliteration.selection import Selection

_KINDS = {SINGLE: "blue", BY_LAYER: "green", RANDOM: "red"}
_LEAST_KL = 1e-6
DPI = 150
Where = Path | BytesIO
"""A file's path, or bytes in memory for a report."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a drawing; `paper` is "none" where the page shows through."""

    paper: str
    ink: str
    quiet: str
    blue: str
    green: str
    red: str
    amber: str


PAPER = Theme("#ffffff", "#1d1f21", "#62666b", "#1f5fa8", "#1c6b3c", "#ad1f1f", "#c77a00")
LIGHT = replace(PAPER, paper="none")
DARK = Theme("none", "#e6e6e2", "#a0a4a8", "#86b6ee", "#7cc99a", "#ff9a8f", "#e5b85c")


def can_plot() -> bool:
    """Whether matplotlib is there; where it is not, a line on stderr says so."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        warn("no plot: matplotlib is missing (pip install 'hermes-quant[plot]')")
        return False
    return True


@contextmanager
def drawing(
    where: Where, theme: Theme, size: tuple[float, float], rows: int = 1, columns: int = 1
) -> Iterator[Any]:
    """Axes (rows, columns) to draw on, in inches; saved as PNG at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: Any = dict.fromkeys(coloured, theme.ink)
    settings |= {"figure.facecolor": theme.paper, "axes.facecolor": theme.paper}
    settings |= {"savefig.facecolor": theme.paper, "axes.spines.top": False}
    with mpl.rc_context({**settings, "axes.spines.right": False}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.subplots(rows, columns, squeeze=False, sharex=rows > 1)
        figure.savefig(where, format="png", dpi=DPI, metadata={"Software": None})


def plot_separation(found: Measurement, where: Where, theme: Theme = PAPER) -> None:
    """One panel a variant, one line a token."""
    variants = found.variants
    size = (6.4 * len(variants), 4.0)
    with drawing(where, theme, size, columns=len(variants)) as axes:
        _draw_separation(found, axes, theme)


def _draw_separation(found: Measurement, axes: Any, theme: Theme) -> None:
    depth = [place / 2 for place in range(2 * found.layers + 1)]
    tokens = found.prompts.positions
    for axis, variant in zip(axes[0], found.variants, strict=True):
        lines = found.separation(variant)
        heights = _apart(lines[:, -1], 0.045 * float(lines.max() or 1))
        for position, line in enumerate(lines):
            back = position - len(tokens)
            shade = 0.25 + 0.75 * (position + 1) / len(tokens)
            axis.plot(depth, line, color=theme.blue, alpha=shade, marker="o", markersize=3)
            axis.annotate(
                f"{back} {tokens[position]!r}",
                (depth[-1], heights[position]),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=7,
                color=theme.ink,
                va="center",
            )
        axis.set_xlabel("layer (halves: between attention and MLP)")
        axis.set_ylabel("distance of the means, in spreads")
        axis.set_title(f"refused against {found.contrast}, {variant} prompts", fontsize=10)
        axis.margins(x=0.14)


def _apart(heights: NDArray[np.float64], least: float) -> NDArray[np.float64]:
    """Heights of labels, moved up where they would lie on each other."""
    moved = heights.copy()
    order = np.argsort(heights)
    for below, above in itertools.pairwise(order):
        moved[above] = max(moved[above], moved[below] + least)
    return moved


def plot_ranking(selection: Selection, where: Where, theme: Theme = PAPER) -> None:
    """One point a candidate; the hollow ones are not sound."""
    with drawing(where, theme, (7.0, 4.6)) as axes:
        _draw_ranking(selection, axes[0][0], theme)


def _draw_ranking(selection: Selection, axis: Any, theme: Theme) -> None:
    for kind, name in _KINDS.items():
        colour = getattr(theme, name)
        for sound in (True, False):
            rows = [
                r
                for r in selection.ranked
                if r.kind == kind and r.sound == sound and r.bypass is not None and r.kl is not None
            ]
            if rows:
                axis.scatter(
                    [max(r.kl or 0, _LEAST_KL) for r in rows],
                    [r.bypass for r in rows],
                    s=26,
                    facecolors=colour if sound else "none",
                    edgecolors=colour,
                    label=kind + ("" if sound or kind == RANDOM else ", not sound"),
                )
    best = selection.best
    if best is not None:
        axis.annotate(
            best.id,
            (max(best.kl or 0, _LEAST_KL), best.bypass),
            xytext=(8, -3),
            textcoords="offset points",
            fontsize=8,
            color=theme.ink,
        )
    axis.axhline(selection.refused_score, color=theme.quiet, lw=1)
    axis.text(
        0.01,
        selection.refused_score,
        "as it is",
        transform=axis.get_yaxis_transform(),
        fontsize=8,
        va="bottom",
        color=theme.quiet,
    )
    axis.axvline(KL_LIMIT, color=theme.red, lw=1, ls=":")
    axis.set_xscale("log")
    axis.set_xlabel("KL divergence on harmless prompts, first token")
    axis.set_ylabel("mean refusal score without the direction")
    axis.legend(fontsize=8, frameon=False)


SIDES = {
    "refused before": "red",
    "refused after": "amber",
    "harmless before": "blue",
    "harmless after": "green",
}
"""Classes and sides of a comparison, and their colours in every plot."""


def plot_projection(seen: Projection, where: Where, theme: Theme = PAPER) -> None:
    """One line a class and side, in a band that holds eight prompts of ten."""
    with drawing(where, theme, (7.0, 4.0)) as axes:
        axis = axes[0][0]
        for name, colour in SIDES.items():
            low, middle, high = seen.quantiles[name]
            depth = [place / 2 for place in range(len(middle))]
            shown = getattr(theme, colour)
            axis.fill_between(depth, low, high, color=shown, alpha=0.18, linewidth=0)
            style = "-" if name.endswith("before") else "--"
            axis.plot(depth, middle, color=shown, ls=style, lw=1.6, label=name)
        axis.axhline(0, color=theme.quiet, lw=0.8)
        axis.set_xlabel("layer (halves: between attention and MLP)")
        axis.set_ylabel("last token along the direction")
        axis.set_title(seen.candidate, fontsize=10)
        axis.legend(fontsize=8, frameon=False)
