"""A gate report as files: `abliteration.json`, `card.md`, and `scores.png` with matplotlib."""

from __future__ import annotations

import json
from pathlib import Path

from convert.errors import OutputError
from quantize.abliteration.plots import can_plot
from verify.abliteration.gate import GateReport
from verify.abliteration.plot import plot_scores
from verify.abliteration.print_gate import card_text


def write_gate(report: GateReport, out: Path) -> None:
    """Write all of them into the folder `out`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "abliteration.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n")
        (out / "card.md").write_text(card_text(report))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to: {error.strerror}") from error
    if can_plot():
        plot_scores(report, out / "scores.png")
