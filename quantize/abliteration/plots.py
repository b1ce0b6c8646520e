"""Plots of a measurement and of a selection, as PNG files beside them.

    separation.png   how far the means of refused and harmless prompts lie apart, by place and token
    ranking.png      every candidate: refusal score without it against KL on harmless prompts

matplotlib is loaded here (`pip install 'hermes-quant[plot]'`); where it is missing, nothing is
drawn and `can_plot` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.terminal import warn
from quantize.abliteration.candidates import BY_LAYER, RANDOM, SINGLE
from quantize.abliteration.measurement import Measurement
from quantize.abliteration.selection import KL_LIMIT, Selection

_COLOURS = {SINGLE: "#35618f", BY_LAYER: "#2c7a4b", RANDOM: "#b03030"}
_INK = "#222222"
_LEAST_KL = 1e-6


def can_plot() -> bool:
    """Whether matplotlib is there; where it is not, a line on stderr says so."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        warn("no plot: matplotlib is missing (pip install 'hermes-quant[plot]')")
        return False
    return True


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(1, panels, figsize=(width, height), squeeze=False, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def plot_separation(found: Measurement, path: Path) -> None:
    """One panel a variant, one line a token."""
    variants = found.variants
    figure, axes = _figure(6.4 * len(variants), 4, len(variants))
    depth = [place / 2 for place in range(2 * found.layers + 1)]
    tokens = found.prompts.positions
    for axis, variant in zip(axes[0], variants, strict=True):
        for position, line in enumerate(found.separation(variant)):
            back = position - len(tokens)
            shade = 0.25 + 0.75 * (position + 1) / len(tokens)
            axis.plot(depth, line, color=_COLOURS[SINGLE], alpha=shade, marker="o", markersize=3)
            axis.annotate(
                f"{back} {tokens[position]!r}",
                (depth[-1], line[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=7,
                color=_INK,
                va="center",
            )
        axis.set_xlabel("layer (halves: between attention and MLP)")
        axis.set_ylabel("distance of the means, in spreads")
        axis.set_title(f"refused against {found.contrast}, {variant} prompts", fontsize=10)
        axis.margins(x=0.14)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def plot_ranking(selection: Selection, path: Path) -> None:
    """One point a candidate; the hollow ones are not sound."""
    figure, axes = _figure(7, 4.6)
    axis = axes[0][0]
    for kind, colour in _COLOURS.items():
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
            color=_INK,
        )
    axis.axhline(selection.refused_score, color="#9aa5b1", lw=1)
    axis.text(
        0.01,
        selection.refused_score,
        "as it is",
        transform=axis.get_yaxis_transform(),
        fontsize=8,
        va="bottom",
        color="#9aa5b1",
    )
    axis.axvline(KL_LIMIT, color="#b03030", lw=1, ls=":")
    axis.set_xscale("log")
    axis.set_xlabel("KL divergence on harmless prompts, first token")
    axis.set_ylabel("mean refusal score without the direction")
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)
