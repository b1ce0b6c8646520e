"""The verb `release publish`: a checked release to the hub, a folder, or any URL fsspec knows.

In: the folder of a release and where it is to go. Out: one `Upload` for each repository. Nothing is
sent before the whole release has passed `release check`, so nothing is published that failed a
gate, was changed since, or is not signed by the key asked for. A dry run stops there and says what
would be sent.

What breaks off in the middle (the hub is down, a disk is full) is one line, and the same command
again goes on: the hub keeps the files that it has (they are known by their sha256), and in a folder
or bucket those are kept that are there with the right bytes. There the manifest goes last, so a
reader who waits for it never sees half a release; on the hub one commit, or one pull request, holds
all of a repository. Files that only an earlier release at the same place had are deleted, so that
what somebody downloads passes `release check` (`earlier.py`).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError, OutputError
from convert.workers import Steps
from verify.release.check import check_release, require_whole
from verify.release.earlier import delete_stale, set_aside, stale_on_hub
from verify.release.manifest import MANIFEST_NAME, NOT_LISTED, read_manifest
from verify.release.recipe import read_recipe
from verify.release.sections import Publish
from verify.release.signing import Identity

HUB = "hub"
_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Target:
    """Where repositories go: `hub` (then `owner` is whose), a folder or a URL."""

    to: str
    owner: str | None = None
    private: bool = True
    create_pr: bool = False


@dataclass(frozen=True, slots=True)
class Upload:
    """One repository: where it went or would go, its files, and what the target answered."""

    repository: str
    place: str
    files: tuple[str, ...]
    size_bytes: int
    sent: int
    answer: str


def publish(
    folder: Path,
    target: Target,
    *,
    by: Identity | None = None,
    dry_run: bool = False,
    on_sent: Steps | None = None,
) -> list[Upload]:
    """Publish every repository of the release in `folder`."""
    manifest = read_manifest(folder)
    if manifest["repository"] is not None:
        raise InputError(
            f"{folder}: one repository of a release; publish the folder above it, which holds all"
        )
    if not manifest["artifacts"]:
        raise InputError(f"{folder}: no artifact of this release passed its gate")
    require_whole(check_release(folder, by))
    if target.to == HUB and not target.owner:
        raise InputError("publish: to the hub as whom? pass --owner NAME or set publish.owner")
    uploads = []
    for repository in manifest["repositories"]:
        planned = _plan(folder, repository, target)
        if dry_run:
            uploads.append(planned)
        elif target.to == HUB:
            uploads.append(_to_hub(folder / repository, planned, target))
        else:
            uploads.append(_to_url(folder / repository, planned, on_sent))
    return uploads


def _plan(folder: Path, repository: str, target: Target) -> Upload:
    place = folder / repository
    files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
    size = sum((place / name).stat().st_size for name in files)
    where = f"{target.owner}/{repository}" if target.to == HUB else f"{target.to}/{repository}"
    return Upload(repository, where, tuple(files), size, 0, "not sent: a dry run")


def _to_hub(place: Path, planned: Upload, target: Target) -> Upload:
    from huggingface_hub import HfApi

    with _hub_errors(planned.place):
        api = HfApi()
        api.create_repo(planned.place, private=target.private, exist_ok=True)
        stale = stale_on_hub(api, planned.place, planned.files)
        commit = api.upload_folder(
            repo_id=planned.place,
            folder_path=place,
            create_pr=target.create_pr,
            delete_patterns=[glob.escape(name) for name in stale] or None,
            commit_message=f"Release {planned.repository}",
        )
    where = commit.pr_url if target.create_pr and commit.pr_url else commit.commit_url
    return Upload(
        planned.repository,
        planned.place,
        planned.files,
        planned.size_bytes,
        len(planned.files),
        str(where),
    )


@contextmanager
def _hub_errors(place: str) -> Iterator[None]:
    """What the hub or the network refuses becomes one line."""
    from httpx import HTTPError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (HTTPError, HFValidationError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise OutputError(
            f"{place}: the hub did not take it: {reason}; run the same command again, it goes on"
            " with what is missing"
        ) from error


def _to_url(place: Path, planned: Upload, on_sent: Steps | None) -> Upload:
    """Copy file by file, the manifest last; what is there with the right bytes is kept."""
    system, root = _file_system(planned.place)
    papers = [name for name in NOT_LISTED if name in planned.files and name != MANIFEST_NAME]
    order = [n for n in planned.files if n not in NOT_LISTED] + papers + [MANIFEST_NAME]
    sent = 0
    with _url_errors(planned.place):
        there = system.exists(f"{root}/{MANIFEST_NAME}")
        if there and not _is_there(system, f"{root}/{MANIFEST_NAME}", place / MANIFEST_NAME):
            set_aside(system, root, planned.files)
        for number, name in enumerate(order):
            remote = f"{root}/{name}"
            if not _is_there(system, remote, place / name):
                system.makedirs(remote.rpartition("/")[0], exist_ok=True)
                system.put_file(str(place / name), f"{remote}.part")
                system.mv(f"{remote}.part", remote)
                sent += 1
            if on_sent:
                on_sent(name, number + 1, len(order))
        delete_stale(system, root, planned.files)
    return Upload(
        planned.repository, planned.place, planned.files, planned.size_bytes, sent, planned.place
    )


def _file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL or a folder, and the path within it."""
    from fsspec.core import url_to_fs

    where = url if _URL.match(url) else os.path.abspath(url)
    try:
        system, root = url_to_fs(where, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url}: not a place that fsspec knows: {str(error)[:200]}") from error
    return system, str(root).rstrip("/")


def _is_there(system: Any, remote: str, local: Path) -> bool:
    """Whether a file is there with the same bytes."""
    if not system.exists(remote) or system.size(remote) != local.stat().st_size:
        return False
    with system.open(remote, "rb") as theirs, local.open("rb") as ours:
        return _digest(theirs) == _digest(ours)


def _digest(stream: Any) -> bytes:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.digest()


@contextmanager
def _url_errors(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise OutputError(
            f"{place}: cannot be written: {reason}; run the same command again, it goes on with"
            " what is missing"
        ) from error


def target_of(
    recipe: Path | None, to: str | None, owner: str | None, private: bool | None, create_pr: bool
) -> Target:
    """What was asked for, laid over the recipe's `publish` section where there is one."""
    stated = read_recipe(recipe).recipe.publish if recipe else Publish()
    return Target(
        to or stated.to,
        owner or stated.owner,
        stated.private if private is None else private,
        create_pr or stated.create_pr,
    )
