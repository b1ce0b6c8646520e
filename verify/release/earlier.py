"""What an earlier release left at the place where a new one goes.

In: a repository of the hub, or a folder of a file system, and the names of the new release's files.
Out: the names that the earlier release's manifest lists and the new one lacks. Only these may be
deleted: whatever else lies there was not put there by a release, and stays.

On a file system the earlier manifest is set aside under another name before the first byte is sent,
so that nobody takes a mixture for a release, and goes last, so that a publication that broke off
still knows what to delete.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError
from verify.release.manifest import MANIFEST_NAME, NOT_LISTED, check_manifest, read_manifest

SET_ASIDE = f"{MANIFEST_NAME}.earlier"


def stale_on_hub(api: Any, repository: str, new: Collection[str]) -> list[str]:
    """The files of a hub repository that only its earlier release had."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            api.hf_hub_download(repository, MANIFEST_NAME, local_dir=folder)
            return sorted(_files(read_manifest(Path(folder))) - set(new))
        except (RemoteEntryNotFoundError, CheckpointError):  # none, or somebody else's file
            return []


def set_aside(system: Any, root: str, new: Collection[str]) -> None:
    """Take the manifest at `root` away from readers, but keep what it lists.

    One that lies aside already is of a publication that was stopped at its deletions: they come
    first, or nobody would know of those files any more.
    """
    manifest = f"{root}/{MANIFEST_NAME}"
    delete_stale(system, root, {*new, *_listed(system, manifest)})
    system.mv(manifest, f"{root}/{SET_ASIDE}")


def delete_stale(system: Any, root: str, new: Collection[str]) -> None:
    """Delete the files that only the release set aside had, and then its manifest."""
    aside = f"{root}/{SET_ASIDE}"
    if not system.exists(aside):
        return
    for name in sorted(_listed(system, aside) - set(new)):
        if system.exists(f"{root}/{name}"):
            system.rm_file(f"{root}/{name}")
    system.rm_file(aside)


def _listed(system: Any, path: str) -> set[str]:
    """The files of the release whose manifest is at `path`; none of somebody else's file."""
    try:
        manifest = json.loads(system.cat_file(path))
        check_manifest(manifest, Path(path))
        return _files(manifest)
    except (ValueError, AttributeError, CheckpointError):
        return set()


def _files(manifest: dict[str, Any]) -> set[str]:
    return {*(str(file["path"]) for file in manifest["files"]), *NOT_LISTED}
