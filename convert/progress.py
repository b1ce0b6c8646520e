"""Progress bars on stderr, where that is a terminal; otherwise nothing.

Each is a context that yields the callback a verb takes as `on_progress`, or None for no progress.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from convert.workers import Progress, Steps


@contextmanager
def bytes_bar(*, quiet: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import (
        Progress as Bar,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    # this stderr: the bar goes on while a library that chatters has another
    with Bar(*columns, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        last = (0, 0)

        def report(done: int, total: int, what: str) -> None:
            nonlocal last
            if done < last[0] or total != last[1]:  # another phase: it has a rate of its own
                bar.reset(task, total=total, completed=done, description=what)
            bar.update(task, completed=done, description=what)
            last = (done, total)

        yield report


@contextmanager
def steps_bar(*, quiet: bool, unit: str = "prompts") -> Iterator[Steps | None]:
    """A progress bar on stderr for one named thing after another, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def report(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, description=f"{name}: {unit}")

        yield report
