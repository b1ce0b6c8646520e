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
    from huggingface_hub.errors import EntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            api.hf_hub_download(repository, MANIFEST_NAME, local_dir=folder)
            return _stale(read_manifest(Path(folder)), new)
        except (EntryNotFoundError, CheckpointError):  # none, or somebody else's file
            return []


def set_aside(system: Any, root: str) -> None:
    """Take the manifest at `root` away from readers, but keep what it lists."""
    system.mv(f"{root}/{MANIFEST_NAME}", f"{root}/{SET_ASIDE}")


def delete_stale(system: Any, root: str, new: Collection[str]) -> None:
    """Delete the files that only the release set aside had, and then its manifest."""
    aside = f"{root}/{SET_ASIDE}"
    if not system.exists(aside):
        return
    try:
        manifest = json.loads(system.cat_file(aside))
        check_manifest(manifest, Path(aside))
        stale = _stale(manifest, new)
    except (ValueError, AttributeError, CheckpointError):  # somebody else's file
        stale = []
    for name in stale:
        if system.exists(f"{root}/{name}"):
            system.rm_file(f"{root}/{name}")
    system.rm_file(aside)


def _stale(manifest: dict[str, Any], new: Collection[str]) -> list[str]:
    listed = [str(file["path"]) for file in manifest["files"]] + list(NOT_LISTED)
    return sorted(set(listed) - set(new))
