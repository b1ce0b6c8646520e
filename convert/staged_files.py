"""The files of a run while they have no final name: made at full size, written anywhere, flushed.

In: planned files, blocks of bytes and their offsets, from many threads. Every file has its whole
space reserved before the first byte, so that a disk cannot run out halfway. What is written is
handed on to the disk while encoding goes on: whenever `DIRTY_BYTES` are waiting in the kernel's
cache, one thread of its own flushes them, and never more than one flush is under way. So at most
twice that many bytes are ever waiting, a run does not end with a long flush, and the kernel never
stops the threads that encode because too much is waiting.

The fact a reader lacks: when the kernel cannot write a page to the disk, it says so once, to the
next fsync, and then takes the page for clean (Rebello et al., "Can Applications Recover from fsync
Failures?", USENIX ATC 2020). Whoever reads it back finds the bytes that were written, the next
fsync succeeds, and the disk has something else. So after a failed flush (`lost`) nothing that was
written is to be believed, and what an earlier process wrote is believed only when it comes from
the disk (`forget_cached`).
"""

from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from convert.errors import OutputError
from convert.plan import PlannedFile
from convert.staging import STAGING_NAME

DIRTY_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 20


class StagedFiles:
    """The open output files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: dict[str, int] = {}
        self._dirty: set[str] = set()
        self._waiting = 0
        self._lock = threading.Lock()
        self._flusher = ThreadPoolExecutor(1)
        self._flush: Future[None] | None = None
        self.lost = False
        """Whether a flush has failed; final once the files are closed."""

    def create(self, files: Iterable[PlannedFile]) -> None:
        """Open every file at its full size, its space reserved; then put the headers in place.

        What a stopped run wrote into a file of that name stays.
        """
        files = tuple(files)
        for file in files:
            path = self.folder / file.path
            with DiskErrors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
                self._descriptors[file.path] = descriptor
                if file.size_bytes:
                    os.posix_fallocate(descriptor, 0, file.size_bytes)
                os.ftruncate(descriptor, file.size_bytes)
        for file in files:
            self.write(file.path, memoryview(file.header), 0)

    def write(self, file: str, data: memoryview, offset: int) -> None:
        """Write bytes at their offset, and see to it that they reach the disk in time."""
        size = len(data)
        with DiskErrors(self.folder / file):
            while data:
                count = os.pwrite(self._descriptors[file], data, offset)
                data, offset = data[count:], offset + count
        with self._lock:
            self._dirty.add(file)
            self._waiting += size
            if self._waiting < DIRTY_BYTES:
                return
            names, self._dirty, self._waiting = self._dirty, set(), 0
            before = self._flush
            if before:
                before.result()
            self._flush = self._flusher.submit(self._write_back, names)

    def _write_back(self, names: set[str]) -> None:
        for name in sorted(names):
            self._flush_now(name, os.fdatasync)

    def _flush_now(self, name: str, flush: Callable[[int], None]) -> None:
        with DiskErrors(self.folder / name, "flushed to the disk"):
            try:
                flush(self._descriptors[name])
            except OSError:
                self.lost = True
                raise

    def forget_cached(self, file: str) -> None:
        """Have the kernel drop what it keeps of a file, so that the disk is what is read next."""
        self._flush_now(file, os.fdatasync)  # only what is on the disk is dropped
        with DiskErrors(self.folder / file, "read"):
            os.posix_fadvise(self._descriptors[file], 0, 0, os.POSIX_FADV_DONTNEED)

    def checksum(self, file: str, spans: Iterable[tuple[int, int]]) -> int:
        """CRC-32 of parts of a file, one after the other."""
        found = 0
        with DiskErrors(self.folder / file, "read"):
            for offset, size in spans:
                for at in range(offset, offset + size, _CHUNK_BYTES):
                    count = min(_CHUNK_BYTES, offset + size - at)
                    found = zlib.crc32(os.pread(self._descriptors[file], count, at), found)
        return found

    def sync(self) -> None:
        """Wait until every byte is on the disk."""
        if self._flush:
            self._flush.result()
        for file in self._descriptors:
            self._flush_now(file, os.fsync)

    def close(self) -> None:
        """Close every file, flushed or not."""
        self._flusher.shutdown()
        while self._descriptors:
            try:
                os.close(self._descriptors.popitem()[1])
            except OSError:  # NFS says so only now where what was not flushed could not be written
                self.lost = True


class DiskErrors:
    """Turns an OSError while writing `path` into an OutputError with the cause in plain words."""

    def __init__(self, path: Path, verb: str = "written") -> None:
        self.path, self.verb = path, verb

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        # The path it will have in the output folder: a bare config.json may be the source's.
        name = str(self.path).partition(f"{STAGING_NAME}/")[2] or self.path.name
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"{name}: the disk is full; make room or choose another --out"
            ) from error
        raise OutputError(f"{name}: cannot be {self.verb}: {error.strerror}") from error
