"""What a terminal shows: text, sizes and tables, on stdout.

A stranger's file may call a tensor anything that JSON can hold: an escape sequence that clears the
screen, a lone surrogate that no stream encodes. `printable` shows both as escapes, on one line.
Progress is on stderr, in `convert/progress.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def printable(text: str) -> str:
    """`text` on one line: what a terminal would act on, and lone surrogates, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def readable_size(size_bytes: int) -> str:
    """A size as people compare them: decimal units, three digits."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def console() -> Console:
    """Standard output, where `:x:` is no emoji; a pipe has no width, so nothing is cut there."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000, emoji=False)


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with a line under its head; the columns in `right` are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        if column in right:
            table.add_column(column, justify="right", no_wrap=True)
        else:
            table.add_column(column, overflow="fold")
    return table


def print_json(data: Any) -> None:
    """Print `data` as indented JSON on stdout."""
    print(json.dumps(data, indent=2))


def warn(text: str) -> None:
    """Print one line of warning on stderr."""
    print(f"warning: {printable(text)}", file=sys.stderr)
