"""What a run has already written, told so that the next run can believe it after any crash.

One journal lies beside each unfinished artifact in the staging folder, `<artifact>.journal`. It is
appended to after the bytes of a block have been handed to the kernel: a line of JSON that binds it
to source, recipe and tool, then records of 40 bytes, little endian:

    u32 file      index of the file in the artifact
    u32 tensor    index of the tensor in the file
    u64 start     first output row
    u64 stop      row after the last
    u64 changed   values that a lossy cast changed
    u32 checksum  CRC-32 of the block's bytes, its parts one after the other
    u32 own       CRC-32 of the 36 bytes above

A journal is flushed to disk before it takes the place of an earlier one, whose records it may hold;
no record that is appended is. After a kill the kernel still has every byte; after a power loss
records may be missing, or the blocks they speak of: a record whose own sum is wrong is not read,
and a block whose sum is wrong is made again. CRC-32 is zlib's: it is everywhere, releases the
interpreter lock and misses a damaged block once in 4 * 10^9, which is enough for damage that nobody
plans; the sha256 in the sidecar is made from the finished file.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.staging import flush

SUFFIX = ".journal"
SCHEMA_VERSION = 1
_FIELDS = [
    ("file", "<u4"),
    ("tensor", "<u4"),
    ("start", "<u8"),
    ("stop", "<u8"),
    ("changed", "<u8"),
    ("checksum", "<u4"),
]
RECORD = np.dtype([*_FIELDS, ("own", "<u4")])
Records = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Binding:
    """What decides an artifact's bytes: `fingerprint` covers all, the others tell what part."""

    tool: str
    source: str
    fingerprint: str

    def difference(self, other: Binding) -> str:
        """Why work bound to `self` is of no use to `other`."""
        if self.tool != other.tool:
            return f"it was made by {self.tool}"
        if self.source != other.source:
            return "the source has changed since"
        return "it was made with other options or side files"


def journal_path(staging: Path, artifact: str) -> Path:
    """Where the journal of an artifact lies."""
    return staging / f"{artifact}{SUFFIX}"


def read_journal(path: Path) -> tuple[Binding, Records] | None:
    """What a journal says, in file order, without what is torn; None if there is none to read."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        data = json.loads(head)
        if data.pop("schema_version") != SCHEMA_VERSION:
            return None
        binding = Binding(**data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    size = RECORD.itemsize
    starts = range(0, len(body) - size + 1, size)
    whole = [i // size for i in starts if body[i : i + size] == _sealed(body[i : i + size - 4])]
    records = np.frombuffer(body, dtype=RECORD, count=len(starts))
    return binding, np.unique(records[whole])


def _sealed(record: bytes) -> bytes:
    return record + zlib.crc32(record).to_bytes(4, "little")


class Journal:
    """An open journal; threads append to it."""

    def __init__(self, path: Path, binding: Binding, records: Records | None = None) -> None:
        """Begin a journal with the records that are known to be true, in place of an old one."""
        self.changed = 0 if records is None else int(records["changed"].sum())
        self._lock = threading.Lock()
        head = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(binding)}) + "\n"
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(head.encode() + (b"" if records is None else records.tobytes()))
        flush(fresh)  # else a power cut may leave neither this one nor the one before
        fresh.replace(path)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(
        self, file: int, tensor: int, rows: tuple[int, int], changed: int, checksum: int
    ) -> None:
        """Note that the bytes of these rows have been written."""
        fields = (file, tensor, *rows, changed, checksum)
        record = _sealed(np.array(fields, dtype=_FIELDS).tobytes())
        with self._lock:
            self.changed += changed
            written = os.write(self._descriptor, record)
        if written != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """Close the file; records that a full server did not take are blocks to be made again."""
        with suppress(OSError):
            os.close(self._descriptor)
