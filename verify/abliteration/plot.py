"""Refusal before and after, as a PNG: the first token's refusal score of every prompt.

In: a pair's scores. Above 0 the reply more likely begins as a refusal than not. One row of points a
class and side, spread so that equal scores do not hide each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantize.abliteration.plots import PAPER, SIDES, Theme, Where, drawing
from verify.abliteration.contents import PairReport

_MARKERS = {"refused": "o", "harmless": "s"}


def plot_scores(pairs: Sequence[PairReport], where: Where, theme: Theme = PAPER) -> None:
    """One panel a pair."""
    size = (7.5, 1.7 * len(pairs) + 0.6)
    with drawing(where, theme, size, rows=len(pairs)) as axes:
        for axis, pair in zip(axes[:, 0], pairs, strict=True):
            _draw(pair, axis, theme)
        axes[-1, 0].set_xlabel("refusal score of the first token (above 0: begins as a refusal)")


def _draw(pair: PairReport, axis: Any, theme: Theme) -> None:
    for row, (kind, colour) in enumerate(SIDES.items()):
        marker = _MARKERS[kind.split()[0]]
        scores = [score for score in pair.scores[kind] if score is not None]
        spread = [-row + 0.5 * ((7 * i) % 11 / 11 - 0.5) for i in range(len(scores))]
        shape = {"s": 7, "marker": marker, "alpha": 0.5, "linewidths": 0}
        axis.scatter(scores, spread, color=getattr(theme, colour), **shape)
    axis.axvline(0, color=theme.ink, lw=0.8)
    axis.set_yticks([-row for row in range(len(SIDES))], list(SIDES), fontsize=8)
    axis.set_title(f"{pair.artifact.name} ({pair.artifact.type})", fontsize=9, loc="left")
