"""A gate report as files: report.html, report.json, junit.xml, card.md, and scores.png."""

from __future__ import annotations

from pathlib import Path

from convert.errors import InputError
from convert.staging import write_whole
from quantize.abliteration.edit_folder import read_edit
from quantize.abliteration.measurement import read_measurement
from quantize.abliteration.plots import can_plot
from quantize.abliteration.selection import read_selection
from verify.abliteration.contents import GateReport
from verify.abliteration.html import Found, render_gate
from verify.abliteration.plot import plot_scores
from verify.abliteration.print_gate import card_text
from verify.report.junit import render_junit
from verify.report.write import write_forms


def write_gate(report: GateReport, out: Path, found: Found | None = None) -> None:
    """Write all of them into the folder `out`; InputError where that cannot be done."""
    junit = render_junit(f"{report.tool} abliterate verify", report.artifacts)
    write_forms(render_gate(report, found), report.to_dict(), junit, out)
    try:
        write_whole(out / "card.md", card_text(report).encode())
        answered = [pair for pair in report.pairs if pair.scores]
        if answered and can_plot():
            plot_scores(answered, out / "scores.png")
    except OSError as error:
        raise InputError(f"{out}: cannot be written to: {error.strerror}") from error


def read_found(folder: Path, edit: Path) -> Found:
    """What `measure` and `select` left in `folder`, if the edit came from there."""
    measurement, selection = read_measurement(folder), read_selection(folder)
    stated = read_edit(edit).recipe.provenance.get("measurement")
    if not measurement.fingerprint == selection.measurement == stated:
        raise InputError(f"{folder}: {edit} does not come from this measurement and selection")
    return Found(measurement, selection)
