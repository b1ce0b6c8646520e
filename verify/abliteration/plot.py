"""Refusal before and after, as a PNG: the first token's refusal score of every prompt, by artifact.

Above 0 the reply more likely begins as a refusal than not. matplotlib is loaded here.
"""

from __future__ import annotations

from pathlib import Path

from verify.abliteration.gate import GateReport

_KINDS = {
    "refused before": ("#b03030", "o"),
    "refused after": ("#e0a030", "o"),
    "harmless before": ("#35618f", "s"),
    "harmless after": ("#4f9d8f", "s"),
}


def plot_scores(report: GateReport, path: Path) -> None:
    """One panel an artifact; one row of points a class."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    count = len(report.pairs)
    figure, axes = pyplot.subplots(
        count,
        1,
        figsize=(7.5, 1.7 * count + 0.6),
        squeeze=False,
        sharex=True,
        layout="constrained",
    )
    for axis, pair in zip(axes[:, 0], report.pairs, strict=True):
        for row, (kind, (colour, marker)) in enumerate(_KINDS.items()):
            scores = pair.scores[kind]
            spread = [-row + 0.5 * ((7 * i) % 11 / 11 - 0.5) for i in range(len(scores))]
            axis.scatter(scores, spread, s=7, color=colour, marker=marker, alpha=0.5, linewidths=0)
        axis.axvline(0, color="#222222", lw=0.8)
        axis.set_yticks([-row for row in range(len(_KINDS))], list(_KINDS), fontsize=8)
        axis.set_title(f"{pair.edited} ({pair.type})", fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("refusal score of the first token (above 0: begins as a refusal)")
    figure.savefig(path, dpi=150, metadata={"Software": None})
    pyplot.close(figure)
