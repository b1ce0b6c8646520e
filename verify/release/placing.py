"""What lies in the output folder: a release moved into place, and what did not pass laid aside.

In: a release that was put together in the work folder. Out: the same under its final names; an old
one is moved aside first and deleted at the end. `quarantine` holds what did not pass, each with the
report that says why. Files are linked where the file system can, so that nothing takes room twice.
Anything in the output folder that is of no release stops a build before it begins.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from convert.errors import InputError, OutputError
from convert.staging import remove
from verify.release.gating import Gated
from verify.release.manifest import MANIFEST_NAME, NOT_LISTED, read_manifest
from verify.release.steps import QUARANTINE, WORK_NAME, Work
from verify.report.write import write_report

SIDE_FOLDERS = (WORK_NAME, QUARANTINE)
"""What may lie in the output folder and is no part of the release."""
_MOVING = "moving.json"


def quarantine(out: Path, gated: Sequence[Gated]) -> None:
    """Lay what did not pass aside, each with its report; take away what passes by now."""
    place = out / QUARANTINE
    for one in gated:
        name = one.made.artifact.name
        for entry in (place / name, place / f"{name}.report"):
            if entry.exists():
                remove(entry)
        if not one.passed:
            for file in one.made.artifact.files:
                link(one.made.folder / file.path, place / file.path)
            write_report(one.report, place / f"{name}.report")
    with suppress(OSError):  # there is none, or something still lies in it
        place.rmdir()


def check_out(out: Path) -> None:
    """OutputError if `out` holds anything but a release and its work folder."""
    if not out.is_dir():
        return
    strange = {entry.name for entry in out.iterdir()} - {*SIDE_FOLDERS} - _release_entries(out)
    if strange:
        raise OutputError(
            f"{out}: holds {sorted(strange)[0]}, which is of no release; choose another --out or"
            " move it away"
        )


def _release_entries(out: Path) -> set[str]:
    """The names at the top of the release in `out`, or of one that was being moved there."""
    found: set[str] = set()
    with suppress(OSError, ValueError):
        found |= set(json.loads((out / WORK_NAME / _MOVING).read_text()))
    with suppress(InputError):
        manifest = read_manifest(out)
        found |= {file["path"].partition("/")[0] for file in manifest["files"]} | {*NOT_LISTED}
    return found


def put_in_place(folder: Path, out: Path, work: Work) -> None:
    """Move the old release aside and the new one in, its manifest last.

    The names that are moved are noted first: a build that is killed on the way leaves a part of a
    release without a manifest, which the next one knows for its own and replaces.
    """
    old, noted = work.fresh("old"), work.folder / _MOVING
    names = _release_entries(out) | {entry.name for entry in folder.iterdir()}
    noted.write_text(json.dumps(sorted(names)))
    for name in sorted(names, key=lambda name: name != MANIFEST_NAME):
        if (out / name).exists():
            os.rename(out / name, old / name)
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == MANIFEST_NAME):
        os.rename(entry, out / entry.name)
    noted.unlink()
    shutil.rmtree(folder)
    shutil.rmtree(old)


def withdraw(out: Path, work: Work) -> None:
    """Take an earlier release out of `out`: nothing of the recipe passes any more."""
    try:
        put_in_place(work.fresh("next"), out, work)
    except OSError as error:
        raise OutputError(
            f"{out}: the earlier release cannot be taken away: {error.strerror}"
        ) from error


def link(source: Path, place: Path) -> None:
    """A hard link, or a copy where there can be none."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place.parent}: cannot be made: {error.strerror}") from error
    try:
        os.link(source, place)
        return
    except OSError:
        with suppress(FileNotFoundError):
            place.unlink()
    try:
        shutil.copyfile(source, place)
    except OSError as error:
        raise OutputError(f"{place}: cannot be written: {error.strerror}") from error
