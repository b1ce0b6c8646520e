"""The report of a lint for a person: what the folder is, then its findings by lint, worst first.

A fault of a tool shows on every layer, so findings of one lint are gathered: what it means once,
the first few subjects with what was found and expected, and how many more there are. All of them
are in the JSON.
"""

from __future__ import annotations

from itertools import groupby

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from convert.terminal import printable
from verify.lint.finding import LintFinding, LintReport, Severity
from verify.lint.lints import LINTS

STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_PRINTED = 3


def print_lint(report: LintReport, console: Console) -> None:
    """Facts, findings, and one line that counts them."""
    console.print(_facts(report))
    for name, found in groupby(report.findings, key=lambda finding: finding.name):
        _print_lint(name, list(found), console)
    console.print(_total(report))


def _facts(report: LintReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("checkpoint", Text(printable(report.name)))
    table.add_row("stored as", Text(printable(report.stored)))
    size = f"{report.size_bytes:,} bytes in {report.shards} shard(s)"
    table.add_row("tensors", f"{report.tensors}, {report.quantized} matrices quantized; {size}")
    if report.tensor_parallel:
        table.add_row("GPUs in vLLM", _parallel(report))
    return table


def _parallel(report: LintReport) -> Text:
    works = [str(size) for size, why in report.tensor_parallel.items() if why is None]
    text = Text(f"tensor parallel {', '.join(works) or 'none'}")
    for size, why in report.tensor_parallel.items():
        if why is not None:
            text.append(f"\nnot {size}: {why}", style="dim")
    return text


def _print_lint(name: str, findings: list[LintFinding], console: Console) -> None:
    lint = LINTS[name]
    count = f" ({len(findings)})" if len(findings) > 1 else ""
    style = STYLES[lint.severity]
    console.print(Text.assemble((f"{lint.severity.value:<8}", style), (name, "bold"), count))
    lines = Text(f"{lint.meaning}\n", style="dim")
    for finding in findings[:_PRINTED]:
        line = f"{finding.subject}: {finding.found}; expected {finding.expected}"
        lines.append(f"{printable(line)}\n", style="not dim")
    if len(findings) > _PRINTED:
        lines.append(f"and {len(findings) - _PRINTED} more, all in --json\n", style="not dim")
    lines.append(f"\N{RIGHTWARDS ARROW} {lint.remedy}", style="not dim green")
    console.print(Padding(lines, (0, 0, 1, 8), expand=False))


def _total(report: LintReport) -> Text:
    if not report.findings:
        return Text("Nothing to report.", style="green")
    parts = [
        (f"{count} {severity.value}{'' if count == 1 else 's'}", STYLES[severity])
        for severity, count in report.count().items()
        if count
    ]
    text = Text()
    for number, part in enumerate(parts):
        text.append(", " if number else "").append(*part)
    return text.append(".")
