"""What the abliterate verbs print: the baseline, the ranking, the edit that was written."""

from __future__ import annotations

from convert.terminal import console, plain_table, printable
from quantize.abliteration.apply import Applied
from quantize.abliteration.measure import Measured
from quantize.abliteration.ranked import Ranked
from quantize.abliteration.selection import Selection

_SHOWN = 15


def print_measured(measured: Measured) -> None:
    """The baseline, and what was measured of it."""
    found, out = measured.measurement, console()
    base = found.baseline
    out.print(
        f"refused: {base.refused} of {base.prompts} by phrase, {base.refused_by_score} by first"
        f" token; harmless prompts refused: {base.harmless_refused} of {base.harmless_prompts}"
    )
    if measured.nothing is not None:
        out.print(printable(measured.nothing))
        return
    for variant in found.variants:
        apart = found.separation(variant)
        position, place = divmod(int(apart.argmax()), apart.shape[1])
        where = f"layer {place // 2}" + (", after attention" if place % 2 else "")
        back = position - len(found.prompts.positions)
        out.print(
            f"{variant}: {len(found.prompts.positions)} positions, {found.layers} layers; the means"
            f" lie farthest apart at token {back}, {where} ({apart.max():.2f} spreads)"
        )


def print_selection(selection: Selection) -> None:
    """The ranking: the first rows, and the controls wherever they stand."""
    out = console()
    out.print(
        f"mean refusal score of the model as it is: {selection.refused_score:.2f} on"
        f" {selection.prompts[0]} refused prompts, {selection.harmless_score:.2f} on"
        f" {selection.prompts[1]} harmless ones"
    )
    numbers = ("bypass", "bypassed", "induce", "KL", "KL, tools")
    table = plain_table("candidate", *numbers, "not sound", right=numbers)
    rows = list(enumerate(selection.ranked))
    for _, row in [r for r in rows if r[0] < _SHOWN or r[1].kind == "random"]:
        table.add_row(printable(row.id), *_numbers(row), row.why or "")
    out.print(table)
    rest = len(rows) - _SHOWN
    if rest > 0:
        out.print(f"all {len(rows)} candidates are in selection.json")


def _numbers(row: Ranked) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        shown(row.bypass, ".2f"),
        shown(None if row.bypassed is None else 100 * row.bypassed, ".0f") + " %",
        shown(row.induce, "+.2f"),
        shown(row.kl, ".4f"),
        shown(row.kl_tools, ".4f"),
    )


def print_applied(applied: Applied) -> None:
    """The edit in one line."""
    recipe = applied.edit.recipe
    strengths = sorted({line.strength for line in recipe.edits})
    console().print(
        f"{printable(applied.chosen.id)}: {len(recipe.edits)} tensors, strength"
        f" {', '.join(format(s, 'g') for s in strengths)}; edit {applied.edit.sha256[:12]}"
    )
