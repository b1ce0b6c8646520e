"""Where a model comes from: a folder, or `repo@revision` on the Hugging Face hub.

A reference that exists on disk is a folder. Anything of the form `owner/name`, with an optional
`@revision` (branch, tag or commit), is downloaded into the hub cache: safetensors weights, configs,
tokenizer, templates, card and licences, never pickles or code. The commit that a branch or tag
stood for is recorded. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convert.errors import CheckpointError, InputError

ALLOW_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
]
_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class Origin:
    """A checkpoint folder and, if it came from the hub, which repository and commit it is."""

    folder: Path
    repo: str | None = None
    revision: str | None = None


def locate(reference: str, *, weights: bool = True) -> Origin:
    """Find the checkpoint that `reference` names; downloads it if it is on the hub."""
    if is_on_disk(reference):
        return Origin(Path(reference))
    return download(*parse_hub_id(reference), weights=weights)


def parse_hub_id(reference: str) -> tuple[str, str | None]:
    """Repository and revision of `owner/name@revision`; InputError for anything else."""
    match = _REPOSITORY.fullmatch(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise InputError(
            f"{reference[:200]!r}: no such folder, and not a hub id (owner/name or"
            " owner/name@revision)"
        )
    return match["repo"], match["revision"]


def is_on_disk(reference: str) -> bool:
    """Whether `reference` names a file or folder; false for what cannot be a path at all."""
    try:
        return bool(reference) and Path(reference).exists()
    except OSError:  # too long for the file system
        return False


def download(repo: str, revision: str | None, *, weights: bool = True) -> Origin:
    """Fetch a repository into the hub cache; without `weights`, all that lies beside them."""
    from huggingface_hub import snapshot_download

    patterns = ALLOW_PATTERNS if weights else ALLOW_PATTERNS[1:]
    with hub_errors(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    return Origin(folder, repo, folder.name)


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """What the hub or the network refuses becomes one line."""
    from httpx import HTTPError
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (HTTPError, HFValidationError, OSError) as error:  # the hub's own are HTTP or OS errors
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{repo}@{revision or 'main'}: cannot be fetched from the hub: {reason}"
        ) from error
