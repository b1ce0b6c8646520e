"""Where a model comes from: a folder, or `repo@revision` on the Hugging Face hub.

A reference that exists on disk is a folder. Anything of the form `owner/name`, with an optional
`@revision` (branch, tag or commit), is downloaded into the hub cache: safetensors weights, configs,
tokenizer, templates, card and licences, never pickles or code. The commit that a branch or tag
stood for is recorded. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere.
"""

from __future__ import annotations

import re
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


def locate(reference: str) -> Origin:
    """Find the checkpoint that `reference` names; downloads it if it is on the hub."""
    if Path(reference).exists():
        return Origin(Path(reference))
    match = _REPOSITORY.fullmatch(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise InputError(
            f"{reference}: no such folder, and not a hub id (owner/name or owner/name@revision)"
        )
    return _download(match["repo"], match["revision"])


def _download(repo: str, revision: str | None) -> Origin:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=ALLOW_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{repo}@{revision or 'main'}: cannot be fetched from the hub: {reason}"
        ) from error
    return Origin(folder, repo, folder.name)
