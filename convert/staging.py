"""Nothing half-written has a final name: the staging folder, the sidecar, the renames.

Outputs are written into `.hermes-quant-staging` inside the output folder (so that a rename never
crosses file systems), flushed to disk, hashed, described in a sidecar, and only then renamed. The
sidecar, `hermes-quant.json` in a folder and `<file>.hermes-quant.json` beside a file, holds the
provenance: source, recipe, numerics, sha256 and size of each file, and the fingerprint by which a
later run knows that the work is done.

The sidecar goes first and the data after it, so data under its final name is always complete and
described. With `force` the old output is renamed aside, the new one in, and the old one deleted; a
run killed between the two renames is mended by the next one, which puts the old output back. The
other files of a stopped run stay for the next one to go on with (`resume.py`).

Two runs on one output folder cannot meet (`lock.py`). What one rename leaves is flushed before the
next one relies on it, so that a power cut leaves what a kill leaves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.errors import OutputError
from convert.lock import LOCK_NAME, open_lock, take_lock

STAGING_NAME = ".hermes-quant-staging"
SIDECAR_NAME = "hermes-quant.json"
SCHEMA_VERSION = 1
_HASH_CHUNK_BYTES = 1 << 22
_ASIDE = ".replaced"


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One finished file: its path relative to the output folder, its size and sha256."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """One finished output and where it came from; this is what its sidecar says."""

    name: str
    target: str
    files: tuple[ArtifactFile, ...]
    source: dict[str, Any]
    recipe: dict[str, Any]
    numerics: tuple[str, ...]
    values_changed: int
    fingerprint: str
    tool: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


def sidecar_path(out: Path, name: str, *, is_folder: bool) -> Path:
    """Where the sidecar of artifact `name` lies."""
    return out / name / SIDECAR_NAME if is_folder else out / f"{name}.{SIDECAR_NAME}"


def read_sidecar(path: Path) -> Artifact | None:
    """The artifact a sidecar describes; None where there is none or it cannot be understood."""
    try:
        data = json.loads(path.read_text())
        if data.pop("schema_version") != SCHEMA_VERSION:
            return None
        data["files"] = tuple(ArtifactFile(**file) for file in data["files"])
        data["numerics"] = tuple(data["numerics"])
        return Artifact(**data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def finished(out: Path, name: str, *, is_folder: bool, fingerprint: str) -> Artifact | None:
    """The artifact, if it lies complete under its final name and has this fingerprint."""
    artifact = read_sidecar(sidecar_path(out, name, is_folder=is_folder))
    if artifact is None or artifact.fingerprint != fingerprint:
        return None
    for file in artifact.files:
        path = out / file.path
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return None
    return artifact


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """The locked staging folder inside `out`; on the way out it is removed if it is empty.

    What a killed run had moved aside and not replaced is put back first; its other files stay.
    """
    staging = out / STAGING_NAME
    try:
        _make_folder(out)
        staging.mkdir(exist_ok=True)
        lock = open_lock(staging)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to: {error.strerror}") from error
    try:
        take_lock(lock, staging, out)
        try:
            _mend(staging, out)
            yield staging
        finally:
            _leave(staging)
    finally:
        os.close(lock)
        with suppress(OSError):  # NFS keeps a file that is open in its folder until it is closed
            staging.rmdir()


def _leave(staging: Path) -> None:
    with suppress(OSError):  # it is not empty: a later run goes on from there
        (staging / LOCK_NAME).unlink()
        staging.rmdir()


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, each known to the disk."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # one may write to the folder above and not read it
        flush(path.parent)


def entries(staging: Path) -> list[Path]:
    """What lies in a staging folder, the lock left out."""
    return [entry for entry in staging.iterdir() if entry.name != LOCK_NAME]


@contextmanager
def trial_folder(out: Path) -> Iterator[Path]:
    """A staging folder to see whether there can be one; of what it had to make nothing stays."""
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        with staging_folder(out) as staging:
            yield staging
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _mend(staging: Path, out: Path) -> None:
    """Put back what a killed run had moved aside and not replaced; delete what it had replaced.

    Data goes back before its sidecar, and the sidecar of the new data is removed before that, so
    that a run killed here, too, leaves no data with the wrong sidecar.
    """
    try:
        _put_back(staging, out)
    except OSError as error:
        raise OutputError(
            f"{out}: what a stopped run had moved aside, into {staging.name}, cannot be put back:"
            f" {error.strerror}"
        ) from error


def _put_back(staging: Path, out: Path) -> None:
    asides = [entry for entry in entries(staging) if entry.name.endswith(_ASIDE)]
    for aside in sorted(asides, key=lambda entry: entry.name.endswith(SIDECAR_NAME + _ASIDE)):
        final = out / aside.name.removesuffix(_ASIDE)
        if final.exists():
            continue
        sidecar = sidecar_path(out, final.name, is_folder=False)
        if not (staging / sidecar.name).exists():  # it has left: what lies in `out` is the new one
            sidecar.unlink(missing_ok=True)
            flush(out)
        aside.rename(final)
        flush(out)
    for aside in asides:
        if aside.exists():
            remove(aside)


def remove(entry: Path) -> None:
    """Delete a file or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def in_the_way(path: Path) -> OutputError:
    """What to raise where an output's name is taken."""
    return OutputError(
        f"{path}: exists and was not made from this source by this version with these options;"
        " move it away or pass --force to replace it"
    )


def may_be_kept(out: Path, name: str, *, is_folder: bool, tool: str) -> bool:
    """Whether an output of this name lies there, complete and made by `tool` from some source."""
    found = read_sidecar(sidecar_path(out, name, is_folder=is_folder))
    if found is None or found.tool != tool:
        return False
    return bool(finished(out, name, is_folder=is_folder, fingerprint=found.fingerprint))


def check_names(out: Path, names: Iterable[str]) -> None:
    """Raise OutputError if a name is too long for `out`, with what is appended on the way."""
    limit = os.pathconf(out, "PC_NAME_MAX")
    for name in names:
        longest = len(f"{name}.{SIDECAR_NAME}{_ASIDE}".encode())
        if longest > limit:
            raise OutputError(
                f"{name}: too long a name: with its sidecar's suffix it takes {longest} bytes, and"
                f" names in {out} have at most {limit}; pass a shorter --name"
            )


def hash_file(path: Path, on_read: Callable[[int], None] | None = None) -> str:
    """sha256 of a file, read once in order; `on_read` hears of every chunk's size."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            if on_read:
                on_read(len(chunk))
    return digest.hexdigest()


def write_sidecar(staging: Path, artifact: Artifact, *, is_folder: bool) -> Path:
    """Write the sidecar into the staging folder, flushed to disk."""
    path = sidecar_path(staging, artifact.name, is_folder=is_folder)
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(artifact)}, indent=2)
    path.write_text(text + "\n")
    flush(path)
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file beside its place and move it there: what has the name is whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def flush(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(staging: Path, out: Path, artifact: Artifact, *, is_folder: bool) -> None:
    """Give a flushed, described artifact its final name, replacing what had it before."""
    final = out / artifact.name
    sidecar = sidecar_path(out, artifact.name, is_folder=False)
    try:
        if final.exists():
            final.rename(staging / (final.name + _ASIDE))
            if sidecar.exists():
                sidecar.rename(staging / (sidecar.name + _ASIDE))
            flush(out)
        if not is_folder:
            (staging / sidecar.name).rename(sidecar)
            flush(out)
        (staging / artifact.name).rename(final)
        flush(out)
    except OSError as error:
        raise OutputError(f"{final}: cannot be put in place: {error.strerror}") from error
