"""A fit report for people, in the terminal.

In: a `Report`. Out: rich renderables that stay legible at 80 columns. Sizes of
files are in decimal units, as downloads are; memory is in GiB, as devices are. A figure that cannot
be said is a dash, never a guess.
"""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from quantize.fit.answer import Answer
from quantize.fit.fit import Report
from quantize.fit.memory import Term, Verdict

GIB = 1 << 30
_COLOURS = {
    Verdict.FITS: "green",
    Verdict.TIGHT: "yellow",
    Verdict.NO: "red",
    Verdict.UNKNOWN: "magenta",
    Verdict.CANNOT: "red",
}
_SHORT = {
    "activation peak": "activation",
    "compute buffer": "compute",
    "engine overhead": "overhead",
}
DASH = "-"


def gib(size_bytes: int) -> str:
    """Memory in GiB with the digits that matter."""
    value = size_bytes / GIB
    return f"{value:.2f}" if value < 100 else f"{value:,.1f}"


def gb(size_bytes: int) -> str:
    """A file's size as people compare them."""
    value = size_bytes / 1e9
    return f"{value:.3g} GB" if value >= 0.1 else f"{size_bytes / 1e6:.3g} MB"


def count(value: int | None) -> str:
    """A number, or a dash."""
    return DASH if value is None else f"{value:,}"


def verdict_text(answer: Answer) -> str:
    """The verdict in the few words a column has: `no: weights`."""
    words = {Verdict.NO: "no", Verdict.TIGHT: "tight"}
    if answer.verdict not in words or answer.breaks is None:
        return str(answer.verdict)
    return f"{words[answer.verdict]}: {_SHORT.get(answer.breaks, answer.breaks)}"


def headline(report: Report) -> str:
    """What was asked, on one line."""
    asked = report.question
    requests = f"{asked.requests} x {asked.context:,} tokens"
    if report.survey:
        return f"{report.subject.name}: the smallest GPU for {requests}"
    many = f"{asked.count} x " if asked.count > 1 else ""
    each = " each" if asked.count > 1 else ""
    basis = asked.gpu.usable_basis
    if asked.usable_bytes < asked.gpu.usable_bytes:
        basis = f"limited by --max-memory; {gib(asked.gpu.usable_bytes)} by {basis}"
    return (
        f"{report.subject.name} on {many}{asked.gpu.name}"
        f" ({gib(asked.usable_bytes)} GiB usable{each}, {basis}): {requests}"
    )


def print_report(report: Report, console: Console) -> None:
    """The table, then what is recommended, its terms and its commands."""
    console.print(Text(headline(report), style="bold"))
    if report.survey:
        console.print(_survey_table(report))
    else:
        console.print(_answers_table(report))
    for answer in _detailed(report):
        console.print(_details(answer))
    if not report.survey:
        lead = "recommended: " if report.recommended else ""
        name = f"{report.recommended.candidate.name}, " if report.recommended else ""
        console.print(Text(f"{lead}{name}{report.why}", style="bold"))
        _print_commands(report.recommended, console)
    _print_size_target(report, console)
    if report.question.gpu.vendor:
        console.print(Text(f"device data: {report.question.gpu.source}", style="dim"))
    for remark in report.remarks:
        console.print(Text(f"note: {remark}", style="dim"))


def _table(*columns: tuple[str, bool]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table


def _answers_table(report: Report) -> Table:
    table = _table(
        ("artifact", False),
        ("GB", True),
        ("GiB/GPU", True),
        ("verdict", False),
        ("context", True),
        ("users", True),
        ("GPUs", True),
        ("tok/s", True),
    )
    engine = ""
    for answer in report.answers:
        if answer.engine != engine:
            engine = answer.engine
            table.add_section()
            table.add_row(f"[bold]{engine}")
        fullest, colour = answer.fullest, _COLOURS[answer.verdict]
        table.add_row(
            f" {escape(answer.candidate.target)}{'*' if answer.candidate.notes else ''}",
            _size(answer),
            gib(fullest.value) if fullest else DASH,
            f"[{colour}]{verdict_text(answer)}",
            count(answer.largest_context),
            count(answer.largest_concurrency),
            count(answer.fewest_gpus),
            f"{answer.speed.estimate:,.0f}" if answer.speed else DASH,
        )
    table.caption = "; ".join(_captions(report))
    table.caption_justify = "left"
    return table


def _size(answer: Answer) -> str:
    """GB in two digits, small files in four; `~` where it is not exact."""
    size = answer.candidate.size_bytes / 1e9
    digits = 2 if size >= 0.1 else 4
    return f"{size:,.{digits}f}{' ' if answer.candidate.exact else '~'}"


def _captions(report: Report) -> list[str]:
    """What the columns and marks mean, as far as they occur."""
    asked = report.question
    lines = [
        f"context: most tokens for {asked.requests} request(s)",
        f"users: most requests of {asked.context:,} tokens",
        "GPUs: fewest that fit",
    ]
    if any(not answer.candidate.exact for answer in report.answers):
        lines.append("~ without headers and vocabulary")
    if any(answer.candidate.notes for answer in report.answers):
        lines.append("* needs an imatrix")
    return lines


def _survey_table(report: Report) -> Table:
    table = _table(("artifact", False), ("engine", False), ("size", True), ("smallest GPU", False))
    for row in report.survey:
        many = f"{row.count} x " if row.count > 1 else ""
        table.add_row(
            escape(row.candidate.target),
            row.candidate.engine,
            gb(row.candidate.size_bytes),
            f"{many}{row.gpu.name}" if row.gpu else "none of up to 8, or not modelled",
        )
    return table


def _detailed(report: Report) -> list[Answer]:
    """Whose terms are shown: of a few answers all, of many the recommended one."""
    if len(report.answers) <= 2:
        return list(report.answers)
    return [report.recommended] if report.recommended else list(report.answers[:1])


def _details(answer: Answer) -> Group:
    device = answer.fullest
    title = Text(f"{answer.candidate.name} on {answer.engine} {answer.engine_version}", "bold")
    if device is None:
        return Group(title, Text(f"{answer.verdict}: {answer.breaks}", style="red"), Text())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, right in (("one GPU", False), ("GiB", True), ("low", True), ("high", True)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    table.add_column("known", no_wrap=True)
    table.add_column("source", overflow="fold")
    for term in device.terms:
        table.add_row(*_term_cells(term))
    low, high = (sum(getattr(t, k) for t in device.terms) for k in ("low", "high"))
    table.add_section()
    table.add_row("sum", gib(device.value), gib(low), gib(high), "", "")
    table.add_row("may use", gib(device.budget_bytes), "", "", "", "")
    lines: list[Text | Table] = [title, table]
    if answer.host:
        total = sum(term.value or 0 for term in answer.host)
        parts = ", ".join(f"{t.name} {gib(t.value or 0)}" for t in answer.host)
        lines.append(Text(f"in main memory {gib(total)} GiB: {parts}"))
    if answer.arithmetic:
        lines.append(Text(f"FP8 on this GPU: {answer.arithmetic}"))
    if answer.speed:
        lines.append(
            Text(
                f"one request decodes at about {answer.speed.estimate:,.0f} tokens/s:"
                f" {answer.speed.efficiency:.0%} of the bandwidth bound {answer.speed.bound:,.0f}"
                f" ({answer.speed.source})"
            )
        )
    if answer.lever:
        lines.append(Text(f"first lever: {answer.lever}", style="yellow"))
    return Group(*lines, Text())


def _term_cells(term: Term) -> tuple[str, ...]:
    if term.value is None:
        return term.name, DASH, DASH, DASH, term.confidence, escape(term.source)
    sizes = (gib(size) for size in (term.value, term.low, term.high))
    return (term.name, *sizes, term.confidence, escape(term.source))


def _print_commands(answer: Answer | None, console: Console) -> None:
    for command in (answer.make, answer.command) if answer else ():
        if command:
            console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)


def _print_size_target(report: Report, console: Console) -> None:
    target = report.size_target
    if target is None:
        return
    if target.mixture and target.mixture_bytes:
        largest = f"{target.mixture} ({target.mixture_bytes:,} bytes)"
    else:
        largest = "none of the published mixtures fits"
    console.print(Text(f"\nlargest mixture that fits: {largest}", style="bold"))
    if target.command:
        console.print(Text(f"a mixture of your own may take {target.fit_bytes:,} bytes:"))
        console.print(Text(f"  {target.command}", style="cyan"), soft_wrap=True)
