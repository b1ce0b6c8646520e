"""A command as a whole process tree: seconds, peak anonymous memory, bytes read and written.

A tool is done when its output is on the disk, whether it flushed it by itself or not: where the
output is named, flushing what is left of it counts, and is told apart.

Memory is the largest sum of RssAnon over the tree, looked at every 20 ms: pages of files, which the
kernel takes back when it likes, do not count, for anybody. Bytes are those of read and write calls
(`/proc/PID/io`), cached or not. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_EVERY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of a command took."""

    seconds: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int
    flush_seconds: float = 0.0
    """The part of `seconds` spent on flushing the output after the command had ended."""

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.seconds + other.seconds,
            max(self.peak_bytes, other.peak_bytes),
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.flush_seconds + other.flush_seconds,
        )


def measure(
    command: Sequence[str], environment: Mapping[str, str] | None = None, out: Path | None = None
) -> Measured:
    """Run the command until `out`, a file or folder, is on the disk; RuntimeError if it fails."""
    with tempfile.TemporaryFile() as said:
        begin = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        peak, moved = _watch(process)
        ended = time.monotonic()
        flush([out] if out else [])
        seconds, flushing = time.monotonic() - begin, time.monotonic() - ended
        if process.returncode:
            said.seek(0)
            words = said.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)}\nexit {process.returncode}: {words}")
    return Measured(seconds, peak, *moved, flushing)


def flush(paths: Sequence[Path]) -> None:
    """Wait until the files, and those in the folders, are on the disk."""
    for path in paths:
        for each in path.rglob("*") if path.is_dir() else [path]:
            if each.is_file():
                descriptor = os.open(each, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)


def _watch(process: subprocess.Popen[bytes]) -> tuple[int, tuple[int, int]]:
    """Peak memory, and bytes read and written, when the process has ended."""
    peak, moved = 0, (0, 0)
    while process.poll() is None:
        tree = list(_tree(process.pid))
        peak = max(peak, sum(anonymous_bytes(pid) for pid in tree))
        found = [_moved(pid) for pid in tree]
        moved = (
            max(moved[0], sum(read for read, _ in found)),
            max(moved[1], sum(written for _, written in found)),
        )
        time.sleep(_EVERY_SECONDS)
    return peak, moved


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process: its own memory that is resident; 0 once it has ended."""
    for line in _lines(f"/proc/{pid}/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _moved(pid: int) -> tuple[int, int]:
    numbers = dict(line.split(": ") for line in _lines(f"/proc/{pid}/io"))
    return int(numbers.get("rchar", 0)), int(numbers.get("wchar", 0))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:  # it has just ended
        return []
