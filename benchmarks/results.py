"""`RESULTS.md`: what the benchmarks found, each section rewritten by the command that measured it.

A section begins with its heading and ends where the next begins; a command replaces its own and
leaves the others. Every section ends with the machine, the versions and the date.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = (
    "# Results\n\nWritten by the commands of this folder, section by section; not edited by hand.\n"
)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_section(title: str, text: str, path: Path = RESULTS) -> None:
    """Put `text` under the heading `title`, in place of what an earlier run found."""
    before = path.read_text() if path.is_file() else ""
    found = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", before, re.MULTILINE | re.DOTALL))
    found[title] = f"\n{text.strip()}\n\n"
    sections = "".join(f"## {title}\n{body}" for title, body in sorted(found.items()))
    path.write_text(f"{_HEAD}\n{sections.rstrip()}\n")


def machine(*packages: str) -> str:
    """Date, processor, threads, Python and the versions of packages."""
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{date.today().isoformat()}; {processor()}, {os.cpu_count()} threads; {versions};"
        f" Python {platform.python_version()}"
    )


def processor() -> str:
    """The processor's name, as the system tells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
