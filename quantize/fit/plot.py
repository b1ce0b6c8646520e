"""The memory of every artifact as stacked bars, term by term, against what the device may use.

In: a `Report` with answers. Out: a PNG. One bar an artifact, one panel an engine, the fullest
device of each; the whisker is the band of the sum, the line the budget, and the colour of a label
its verdict. matplotlib is loaded here and nowhere else (`pip install 'hermes-quant[plot]'`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.errors import InputError, OutputError, UnsupportedError
from quantize.fit.answer import Answer
from quantize.fit.fit import Report
from quantize.fit.memory import Verdict

GIB = 1 << 30
_TERM_COLOURS = {
    "weights": "#35618f",
    "outside torch": "#9aa5b1",
    "engine overhead": "#9aa5b1",
    "activation peak": "#e0a030",
    "compute buffer": "#e0a030",
    "CUDA graphs": "#c9c1d9",
    "KV cache": "#4f9d8f",
}
_VERDICT_COLOURS = {
    Verdict.FITS: "#2c7a4b",
    Verdict.TIGHT: "#b0750a",
    Verdict.NO: "#b03030",
    Verdict.UNKNOWN: "#7a4b8c",
}
_INK, _LINE = "#222222", "#b03030"


def write_plot(report: Report, path: Path) -> None:
    """Draw `report` into the PNG file `path`."""
    if path.suffix.lower() != ".png":
        raise InputError(f"--plot {path}: expected a name that ends in .png")
    panels = _panels(report)
    if not panels:
        raise InputError(
            "--plot: nothing to draw; name a GPU with --gpu, --gpu-mem or --max-memory"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(
            "--plot needs matplotlib; install it with: pip install 'hermes-quant[plot]'"
        ) from error
    rows = [len(answers) for _, answers in panels]
    figure = Figure(figsize=(9.6, 1.5 + 0.27 * sum(rows) + 0.75 * len(rows)), dpi=160)
    axes = figure.subplots(len(panels), 1, height_ratios=rows, sharex=True, squeeze=False)
    limit = _limit(panels)
    for (engine, answers), axis in zip(panels, axes[:, 0], strict=True):
        _draw_panel(axis, engine, answers, limit)
    axes[-1, 0].set_xlabel(
        "GiB on the fullest GPU; whisker: band of the sum;"
        " label: green fits, amber tight, red does not fit",
        color=_INK,
        fontsize=8,
    )
    inch = 1 / figure.get_figheight()
    figure.text(0.012, 1 - 0.12 * inch, _title(report), va="top", fontsize=11, color=_INK)
    _legend(figure, panels, 1 - 0.36 * inch)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.56 * inch))
    try:
        figure.savefig(path, format="png", metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def _panels(report: Report) -> list[tuple[str, list[Answer]]]:
    """Answers by engine, those without a plan left out."""
    drawn = [answer for answer in report.answers if answer.devices]
    engines = dict.fromkeys(answer.engine for answer in drawn)
    return [(engine, [a for a in drawn if a.engine == engine]) for engine in engines]


def _title(report: Report) -> str:
    asked = report.question
    many = f"{asked.count} x " if asked.count > 1 else ""
    requests = f"{asked.requests} x {asked.context:,} tokens"
    return f"{report.subject.name} on {many}{asked.gpu.name}, {requests}"


def _limit(panels: list[tuple[str, list[Answer]]]) -> float:
    """The axis ends where the largest artifact that is not hopeless does, at 1.6 budgets."""
    devices = [a.fullest for _, answers in panels for a in answers if a.fullest]
    budget = max(device.budget_bytes for device in devices)
    return min(max(device.value for device in devices) * 1.04, budget * 1.6) / GIB


def _draw_panel(axis: Any, engine: str, answers: list[Answer], limit: float) -> None:
    for row, answer in enumerate(answers):
        device = answer.fullest
        assert device is not None
        left = 0.0
        for term in device.terms:
            width = (term.value or 0) / GIB
            axis.barh(row, width, left=left, height=0.72, color=_TERM_COLOURS[term.name])
            left += width
        low, high = (sum(getattr(t, end) for t in device.terms) / GIB for end in ("low", "high"))
        if left < limit:
            axis.plot(
                [low, min(high, limit)], [row, row], color=_INK, lw=1.2, solid_capstyle="butt"
            )
        else:
            text = f"{left:,.0f} GiB "
            axis.text(limit, row, text, ha="right", va="center", color="white", fontsize=8)
    budget = max(a.fullest.budget_bytes for a in answers if a.fullest) / GIB
    _draw_budget(axis, budget, limit)
    axis.set_title(engine, loc="left", fontsize=10, color=_INK)
    axis.set_yticks(range(len(answers)), [answer.candidate.target for answer in answers])
    for label, answer in zip(axis.get_yticklabels(), answers, strict=True):
        label.set_color(_VERDICT_COLOURS.get(answer.verdict, _INK))
        label.set_fontsize(8)
    axis.set_xlim(0, max(limit, budget * 1.02))
    axis.set_ylim(len(answers) - 0.4, -0.6)
    axis.tick_params(length=0, labelsize=8)
    axis.grid(axis="x", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _draw_budget(axis: Any, budget: float, limit: float) -> None:
    """The line that must not be crossed."""
    axis.axvline(budget, color=_LINE, lw=1.4)
    axis.annotate(
        f"may use {budget:.1f} GiB",
        (budget, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, 3),
        textcoords="offset points",
        color=_LINE,
        fontsize=8,
        ha="left" if budget < 0.8 * limit else "right",
    )


def _legend(figure: Any, panels: list[tuple[str, list[Answer]]], top: float) -> None:
    """One entry a colour: two engines call the same thing by two names."""
    from matplotlib.patches import Patch

    names: dict[str, list[str]] = {}
    for _, answers in panels:
        for term in answers[0].devices[0].terms:
            shared = names.setdefault(_TERM_COLOURS[term.name], [])
            if term.name not in shared:
                shared.append(term.name)
    handles = [Patch(color=colour, label=" / ".join(n)) for colour, n in names.items()]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.005, top),
        borderpad=0.1,
        ncols=len(handles),
        fontsize=8,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.2,
    )
