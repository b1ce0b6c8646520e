"""Where a release comes from: the source's files by hash, and the tools by version and hash.

In: a checkpoint; the installed packages. Out: plain values for the manifest. Nothing here names a
folder: two builds in different places say the same.

Hashing the source is a read of its own (the run that quantizes reads rows, in no order). Hashes are
kept by name, size and modification time in the work folder, so a later build does not repeat it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import UnsupportedError
from convert.job import tool_version
from convert.model import Model
from convert.staging import hash_file
from quantize import kernels
from quantize.ggml import library_path

LIBRARIES = (
    "numpy",
    "llama-cpp-python",
    "tokenizers",
    "torch",
    "transformers",
    "compressed-tensors",
    "model-signing",
)
_PACKAGES = ("convert", "quantize", "verify")
Files = dict[str, dict[str, Any]]


def source_files(checkpoint: Checkpoint, kept_in: Path) -> Files:
    """sha256 and size of every file of the source that decides an artifact's bytes."""
    names = (*checkpoint.side_files(), *checkpoint.shards)
    if (checkpoint.path / "model.safetensors.index.json").is_file():
        names = (*names, "model.safetensors.index.json")
    try:
        kept: dict[str, Any] = json.loads(kept_in.read_text())
    except (OSError, ValueError):
        kept = {}
    found: Files = {}
    stamps: dict[str, Any] = {}
    for name in sorted(names):
        path = checkpoint.path / name
        status = path.stat()
        stamp = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        known = kept.get(name, {})
        digest = known["sha256"] if known.get("stamp") == stamp else hash_file(path)
        found[name] = {"sha256": digest, "size_bytes": status.st_size}
        stamps[name] = {"stamp": stamp, "sha256": digest}
    kept_in.write_text(json.dumps(stamps))
    return found


def describe_source(model: Model, files: Mapping[str, Any]) -> dict[str, Any]:
    """The source as a manifest names it: no folder, no local path."""
    stated = model.source()
    keys = ("name", "repo", "revision", "architecture")
    return {
        **{key: stated[key] for key in keys},
        "parameters": model.parameters,
        "files": dict(files),
    }


@cache
def tools() -> dict[str, Any]:
    """This tool, the libraries whose versions matter, and the kernels, by version and hash."""
    return {
        "hermes-quant": {"version": tool_version().split()[-1], "sha256": _own_sha256()},
        "python": {"version": platform.python_version()},
        "machine": {"version": platform.machine()},
        **{name: {"version": version} for name in LIBRARIES if (version := _version(name))},
        "kernels": {"version": kernels.build() or "ggml", "sha256": _kernels_sha256()},
        "libggml-base": {"sha256": _ggml_sha256()},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _own_sha256() -> str:
    """One digest of every Python file of this project, by its name within it."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for path in sorted(p for package in _PACKAGES for p in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _kernels_sha256() -> str | None:
    spec = util.find_spec("quantize.kernels.native")
    return hash_file(Path(spec.origin)) if spec and spec.origin else None


def _ggml_sha256() -> str | None:
    try:
        return hash_file(library_path())
    except UnsupportedError:
        return None
