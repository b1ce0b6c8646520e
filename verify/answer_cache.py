"""What models answered, kept by content, so that it is computed once and not once a run.

In: a folder, and what a model's numbers depend on. Out: arrays of numbers, or None.

An entry's name is a digest of everything its numbers depend on: every byte of the weights (not
their dates or places), config.json, how they are run (dtype, device, batch, threads), the prompts
as token ids (and with them tokenizer and template), the stop ids, what was asked, the versions of
the packages that compute, and FORM. Nothing else is ever compared: another weight is another name.
Old entries are not deleted; the folder may be, any time.

Of a reference the options are named, because its engine is opened only for what is not kept; of an
artifact what its engine, once open, says of itself. A server says nothing of the weights behind it,
so what it answers is not kept at all.

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
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.gguf_reader import read_gguf
from convert.staging import hash_file
from verify.artifact import Artifact, Kind
from verify.engines import EngineInfo

FORM = 5
"""Raised when what is computed or kept changes."""
PACKAGES = ("torch", "transformers", "tokenizers", "compressed-tensors", "llama-cpp-python")
SIDE_FILES = ("config.json", "generation_config.json")
Arrays = dict[str, npt.NDArray[Any]]
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`hermes-quant` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hermes-quant"


class AnswerCache:
    """Entries of one model, run in one way, in one folder."""

    def __init__(self, folder: Path, model: Mapping[str, Any]) -> None:
        self._folder, self._writable = folder, True
        self._model = {
            "form": FORM,
            "packages": {name: _version(name) for name in PACKAGES},
            "machine": [platform.machine(), os.cpu_count()],
            **model,
        }

    @classmethod
    def of_reference(
        cls, folder: Path, checkpoint: Checkpoint, options: Mapping[str, Any]
    ) -> AnswerCache:
        """Of a checkpoint, run with these options; reads all its weights."""
        names = (*SIDE_FILES, *checkpoint.shards)
        return cls(folder, {"files": _digests(checkpoint.path, names), "options": dict(options)})

    @classmethod
    def of_artifact(cls, folder: Path, artifact: Artifact, info: EngineInfo) -> AnswerCache:
        """Of an artifact's files, run as its engine says; reads all its weights."""
        run = {**asdict(info), "capabilities": sorted(info.capabilities)}
        if artifact.kind is Kind.GGUF:
            files: Any = [_digest(path) for path in read_gguf(artifact.path).paths]
        else:
            weights = sorted(path.name for path in artifact.path.glob("*.safetensors"))
            files = _digests(artifact.path, (*SIDE_FILES, *weights))
        return cls(folder, {"files": files, "engine": run})

    def path(self, kind: str, asked: Mapping[str, Any]) -> Path:
        """Where the entry for a question lies, or would."""
        key = json.dumps([self._model, kind, asked], sort_keys=True)
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
        if not self._writable:
            return
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
            self._writable = False
            _log.warning("%s: cannot be written: %s; answers are not kept", path, error)


def _digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """sha256 of every file the numbers come from, by name."""
    return {name: _digest(folder / name) for name in names if (folder / name).is_file()}


def _digest(path: Path) -> str:
    try:
        return hash_file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
