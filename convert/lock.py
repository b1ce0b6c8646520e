"""One run at a time in an output folder: a lock on a file in its staging folder.

In: the staging folder. Out: a descriptor that holds the lock until it is closed, by the kernel if
the process dies; or OutputError. It is a file opened for writing and not the folder itself, because
NFS tells the server of a lock only then: flock(2) becomes a lock of the file's bytes there, and one
on a folder stays on this machine. Who holds the lock removes the file before it lets go, so a run
that waited at the door finds that the file it has locked is no longer the one in the folder.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from convert.errors import OutputError

LOCK_NAME = ".lock"


def open_lock(staging: Path) -> int:
    """A descriptor of the lock's file, made if it is not there; OSError where it cannot be."""
    folder = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        return os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=folder)
    finally:
        os.close(folder)


def take_lock(lock: int, staging: Path, out: Path) -> None:
    """Lock an opened file, or raise OutputError; the two folders must be on one file system."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"{out}: another run is writing here; wait for it or choose another --out"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{staging}: cannot be locked: {error.strerror}; nothing would keep a second run away."
            " Choose an --out on a file system with locks"
        ) from error
    path = staging / LOCK_NAME
    if not path.is_file() or os.fstat(lock).st_ino != path.stat().st_ino:
        raise OutputError(f"{out}: another run has just finished here; run again")
    if os.fstat(lock).st_dev != out.stat().st_dev:
        raise OutputError(
            f"{staging}: lies on another file system than {out}, so that nothing can be moved from"
            " one to the other at once; remove it"
        )
