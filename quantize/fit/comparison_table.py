"""Predicted against measured, in the terminal: sizes in MiB as the logs print them."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from quantize.fit.compare import Comparison
from quantize.fit.table import DASH


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Predicted and measured side by side."""
    console.print(Text(f"{comparison.candidate.name} on {comparison.engine}", style="bold"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("term", "predicted", "log", "error"):
        table.add_column(name, justify="left" if name == "term" else "right", no_wrap=True)
    table.add_column("", overflow="fold")
    for term in comparison.terms:
        sizes = [term.predicted, term.measured]
        counted = term.name in ("KV tokens", "KV blocks")
        shown = [
            DASH if s is None else f"{s:,}" if counted else f"{s / (1 << 20):,.2f} MiB"
            for s in sizes
        ]
        error = DASH if term.error is None else f"{term.error:+.2%}"
        table.add_row(escape(term.name), *shown, error, escape(term.why))
    console.print(table)
