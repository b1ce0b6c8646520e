"""What a reference answered, kept by content, so that it is computed once and not once a run.

In: a folder, and what an entry depends on. Out: arrays of numbers, or None.

An entry's name is a digest of everything its numbers depend on: every byte of the weights (not
their dates), config.json, the prompts as token ids (and with them tokenizer and template), the
stop ids, what was asked, the versions of the packages that compute, and FORM. Nothing else is ever
compared: another weight is another name. Old entries are not deleted; the folder may be, any time.

Entries are npz files without pickled objects. They are written beside their place and renamed into
it, so an interrupted run leaves none that is cut. One that cannot be read all the same (zip's CRC
covers every byte) is ignored with a word on stderr, and so is a folder that cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.checkpoint import Checkpoint

FORM = 4
"""Raised when what is computed or kept changes."""
PACKAGES = ("torch", "transformers", "tokenizers", "compressed-tensors")
SIDE_FILES = ("config.json", "generation_config.json")
Arrays = dict[str, npt.NDArray[Any]]
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`hermes-quant` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hermes-quant"


class ReferenceCache:
    """Entries of one reference in one folder."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        self._folder = folder
        self._reference = {
            "form": FORM,
            "files": _digests(checkpoint),
            "packages": {name: _version(name) for name in PACKAGES},
            "machine": [platform.machine(), os.cpu_count()],
        }

    def path(self, kind: str, asked: Mapping[str, Any]) -> Path:
        """Where the entry for a question lies, or would."""
        key = json.dumps([self._reference, kind, asked], sort_keys=True)
        return self._folder / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}.npz"

    def read(self, kind: str, asked: Mapping[str, Any]) -> Arrays | None:
        """What was kept for a question."""
        path = self.path(kind, asked)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            _log.warning("%s: not a cache entry that can be read: %s; computed anew", path, error)
            return None

    def write(self, kind: str, asked: Mapping[str, Any], arrays: Arrays) -> None:
        """Keep the answer to a question."""
        path = self.path(kind, asked)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".tmp", delete=False) as file:
                try:
                    np.savez(file, allow_pickle=False, **arrays)
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            _log.warning("%s: cannot be written: %s; the reference is not kept", path, error)


def _digests(checkpoint: Checkpoint) -> dict[str, str]:
    """sha256 of every file the numbers come from, by name."""
    found: dict[str, str] = {}
    for name in (*SIDE_FILES, *checkpoint.shards):
        if (checkpoint.path / name).is_file():
            with (checkpoint.path / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
