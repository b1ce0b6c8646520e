"""The report of a diff for a person: the verdict, what it rests on, and the ten worst tensors."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from convert.terminal import printable
from verify.diff import DiffReport, Relation, TensorDiff

STYLES = {
    Relation.IDENTICAL: "bold green",
    Relation.OTHER_NUMERICS: "bold yellow",
    Relation.ABLATED: "bold yellow",
    Relation.OTHER_MODEL: "bold red",
}
_PRINTED = 5
_SHOWN = 20


def print_diff(report: DiffReport, console: Console) -> None:
    """The verdict first, then what differs."""
    console.print(
        Text.assemble((report.relation.value, STYLES[report.relation]), f": {report.reason}")
    )
    equal = sum(tensor.equal for tensor in report.tensors)
    both = len(report.tensors)
    console.print(
        Text(
            printable(f"{report.a} / {report.b}: {report.layout}; {equal} of {both} tensors equal")
        ),
        style="dim",
    )
    for place, names in ((report.a, report.only_in_a), (report.b, report.only_in_b)):
        for name in names[:_PRINTED]:
            console.print(Text(printable(f"only in {place}: {name}")))
        if len(names) > _PRINTED:
            more = f"and {len(names) - _PRINTED} more only in {place}, all in --json"
            console.print(Text(printable(more)))
    if report.worst:
        console.print(_worst(report))
    if report.changes:
        console.print(_changes(report))


def _changes(report: DiffReport) -> Table:
    """Of the changed matrices, the first ones: is it one direction, and how strongly?"""
    table = Table(
        title="How they changed", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("tensor", overflow="fold")
    for heading in ("rank one", "explained", "strength", "fit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for change in report.changes[:_SHOWN]:
        table.add_row(
            Text(printable(change.name)),
            "yes" if change.rank_one else "no",
            f"{change.explained:.4f}",
            f"{change.strength:.3f}",
            f"{change.fit:.3f}",
        )
    if len(report.changes) > _SHOWN:
        table.caption = f"and {len(report.changes) - _SHOWN} more, all in --json"
    return table


def _worst(report: DiffReport) -> Table:
    wrong = sum(not tensor.equal for tensor in report.tensors)
    title = f"The {len(report.worst)} that differ most" if wrong > len(report.worst) else "Differ"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    table.add_column("as")
    for heading in ("values", "differ", "%", "codes apart"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor in report.worst:
        table.add_row(*_row(tensor))
    return table


def _row(tensor: TensorDiff) -> tuple[Text, str, str, str, str, str]:
    name, count = Text(printable(tensor.name)), f"{tensor.elements:,}"
    if tensor.form is not None:
        return name, escape(tensor.form), count, "-", "-", "-"
    share = f"{100 * tensor.differing / tensor.elements:.2f}"
    return (
        name,
        tensor.kind.value,
        count,
        f"{tensor.differing:,}",
        share,
        f"{tensor.max_distance:,}",
    )
