"""What a power cut may take from a run that was killed: every byte written since the last flush.

A kill leaves the kernel's cache, a power cut does not. `WriteLog` notes, in the child that is going
to be killed, what is written where and when it is flushed; `replay` says from that log what was
waiting when the child died; `lose` takes it away: a random half of the writes that had not been
flushed become zeros, as where the disk's blocks were reserved and never written. Files are known by
inode, since they are renamed. What the log itself shows to be wrong is a fault: a name given before
all that bears it was flushed, or an output folder that was not flushed after.

Renames are taken to be kept in their order, as journaling file systems keep them; a cut between two
is the kill between two. A write is noted when it is done, so that one whose noting was cut off is
not lost: less is taken than may be, never more.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import stat
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.staging import SIDECAR_NAME, STAGING_NAME

WRITES = ("pwrite", "write")
FLUSHES = ("fsync", "fdatasync")
MOVES = ("rename", "replace")
PATH_WRITES = ("write_bytes", "write_text")
Span = tuple[int, int]
"""Offset and size."""


class WriteLog:
    """Written by the child; its own writes are not noted."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        self._write = os.write

    def note(self, *event: Any) -> None:
        self._write(self._descriptor, json.dumps(event).encode() + b"\n")

    def call(self, name: str, original: Any, arguments: tuple[Any, ...], more: Any) -> Any:
        """Make a call and note what it does to the disk."""
        if name in FLUSHES:
            inode, thread = os.fstat(arguments[0]).st_ino, threading.get_ident()
            self.note("flush", inode, thread, _listing(arguments[0]))
        elif name in MOVES:
            self._note_move(*map(Path, arguments))
        elif name == "unlink":
            found = os.stat(arguments[0], **more, follow_symlinks=False)
            self.note("gone", found.st_ino)
        made = original(*arguments, **more)
        if name in WRITES:
            self._note_write(name, arguments, made)
        elif name in FLUSHES:
            self.note("flushed", inode, thread)
        elif name in PATH_WRITES:
            self.note("whole", arguments[0].stat().st_ino, arguments[0].stat().st_size)
        return made

    def _note_write(self, name: str, arguments: tuple[Any, ...], size: int) -> None:
        descriptor, found = arguments[0], os.fstat(arguments[0])
        if not stat.S_ISREG(found.st_mode):
            return
        if name == "pwrite":
            end = arguments[2] + size
        elif fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
            end = found.st_size
        else:
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
        self.note("write", found.st_ino, end - size, size)

    def _note_move(self, source: Path, target: Path) -> None:
        if target.exists():
            self.note("gone", target.stat().st_ino)
        if source.name.endswith(".replaced"):  # an old output, which is put back
            return
        inside = [path for path in (source, *source.rglob("*")) if source.exists()]
        files = {str(p.relative_to(source.parent)): p.stat().st_ino for p in inside if p.is_file()}
        folders = {
            str(p.relative_to(source.parent)): (p.stat().st_ino, sorted(os.listdir(p)))
            for p in inside
            if p.is_dir() and STAGING_NAME not in target.parts
        }
        out = 0 if STAGING_NAME in target.parts else target.parent.stat().st_ino
        self.note("named", target.name, out, files, folders)

    def end(self, out: Path) -> None:
        """Note what a run that was not disturbed left."""
        names = sorted(name for name in os.listdir(out) if name != STAGING_NAME)
        self.note("end", out.stat().st_ino, names)


def _listing(descriptor: int) -> list[str] | None:
    is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    return sorted(os.listdir(descriptor)) if is_folder else None


@dataclass
class Disk:
    """After a log: writes not flushed and all writes, by inode; folders as they were flushed."""

    waiting: dict[int, list[tuple[int, Span]]] = field(default_factory=lambda: defaultdict(list))
    written: dict[int, list[Span]] = field(default_factory=lambda: defaultdict(list))
    listed: dict[int, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    _begun: dict[tuple[int, int], tuple[int, list[str] | None]] = field(default_factory=dict)

    def take(self, number: int, kind: str, *event: Any) -> None:
        """The `number`-th event of the log."""
        if kind == "named":
            self._named(*event)
        elif kind == "flush":
            inode, thread, listing = event
            self._begun[inode, thread] = number, listing
        elif kind == "flushed":
            inode, thread = event
            begun, listing = self._begun.pop((inode, thread))
            self.waiting[inode] = [write for write in self.waiting[inode] if write[0] > begun]
            if listing is not None:
                self.listed[inode] = listing
        elif kind == "write":
            self._written(number, *event)
        elif kind == "end":
            out, names = event
            missing = {*names} - {*self.listed.get(out, [])}
            self.faults += [f"{name}: its name was not flushed" for name in sorted(missing)]
        else:
            for known in (self.waiting, self.written, self.listed):
                known.pop(event[0], None)
            if kind == "whole":
                self._written(number, event[0], 0, event[1])

    def _written(self, number: int, inode: int, offset: int, size: int) -> None:
        self.waiting[inode].append((number, (offset, size)))
        self.written[inode].append((offset, size))

    def _named(
        self, name: str, out: int, files: dict[str, int], folders: dict[str, tuple[int, list[str]]]
    ) -> None:
        late = [file for file, inode in files.items() if self.waiting.get(inode)]
        late += [f for f, (inode, listing) in folders.items() if self.listed.get(inode) != listing]
        self.faults += [f"{name}: has its name before {each} is flushed" for each in late]
        sidecar = f"{name}.{SIDECAR_NAME}"
        is_data = out and not folders and not name.endswith(SIDECAR_NAME)
        if is_data and sidecar not in self.listed.get(out, []):
            self.faults.append(f"{name}: has its name before its sidecar's is flushed")


def replay(log: Path) -> Disk:
    """The disk after the events of a log."""
    disk = Disk()
    lines = log.read_text().split("\n") if log.exists() else [""]
    for number, line in enumerate(lines[:-1]):
        disk.take(number, *json.loads(line))
    return disk


def lose(out: Path, disk: Disk, generator: random.Random) -> list[str]:
    """Take from what lies in `out` what was not flushed; what must have been is told as a fault."""
    faults = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        spans = [span for _, span in disk.waiting.get(path.stat().st_ino, [])]
        if spans and STAGING_NAME not in path.parts:
            faults.append(f"{path.name}: has its name and {len(spans)} writes not flushed")
        with path.open("r+b") as stream:
            for offset, size in spans:
                if generator.random() < 0.5:
                    stream.seek(offset)
                    stream.write(bytes(max(0, min(size, path.stat().st_size - offset))))
    return faults


def unseen(out: Path, disk: Disk) -> list[str]:
    """Files with bytes that no noted call has written: there is a call that nobody kills at."""
    faults = []
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        data = bytearray(path.read_bytes())
        for offset, size in disk.written.get(path.stat().st_ino, []):
            data[offset : offset + size] = bytes(size)
        if any(data):
            faults.append(f"{path.name}: was written by calls that are not counted")
    return faults
