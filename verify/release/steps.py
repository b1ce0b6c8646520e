"""What a build keeps between runs: `.build` inside the output folder, and what is in it.

    artifacts/          what `quantize` made, each with its sidecar and fingerprint
    edited/             the same of what it made through the recipe's edit
    controls/N/         and of what it made through its random edits, which nobody is given
    checks/NAME.json    what `verify` found about an artifact, under the fingerprint of the question
    source.json         the source's hashes by size and modification time
    next/               a release being put together; renamed into place when it is complete

A step whose fingerprint is known is not repeated. The fingerprint of a check covers the artifact's
bytes, the source's bytes, the conversations, the gate, the options, and the tools; nothing else
decides what comes out. A file that cannot be read counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from convert.errors import OutputError
from convert.staging import write_whole
from verify.report.contents import Report

WORK_NAME, QUARANTINE = ".build", "quarantine"
FORM = 1
"""Raised when what a check means changes."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work folder of a build."""

    folder: Path

    @classmethod
    def inside(cls, out: Path) -> Work:
        """The work folder in `out`, made if it is not there."""
        work = cls(out / WORK_NAME)
        try:
            (work.folder / "checks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written to: {error.strerror}") from error
        return work

    @property
    def artifacts(self) -> Path:
        """Where `quantize` writes."""
        return self.folder / "artifacts"

    @property
    def edited(self) -> Path:
        """Where it writes what is made through the edit: a stopped run there is kept apart."""
        return self.folder / "edited"

    def control(self, number: int) -> Path:
        """Where it writes what is made through a random edit."""
        return self.folder / "controls" / str(number)

    @property
    def source(self) -> Path:
        """Where the source's hashes are kept."""
        return self.folder / "source.json"

    def fresh(self, name: str) -> Path:
        """An empty folder in it."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def read_check(self, artifact: str, fingerprint: str) -> Report | None:
        """The report on an artifact, if the same question was answered before."""
        try:
            kept = json.loads(self._check(artifact).read_text(encoding="utf-8"))
            if kept["fingerprint"] != fingerprint:
                return None
            return TypeAdapter(Report).validate_python(kept["report"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def write_check(self, artifact: str, fingerprint: str, report: Report) -> None:
        """Keep a report."""
        path = self._check(artifact)
        try:
            kept = {"fingerprint": fingerprint, "report": report.to_dict()}
            write_whole(path, json.dumps(kept, allow_nan=False).encode())
        except OSError as error:
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error

    def _check(self, artifact: str) -> Path:
        return self.folder / "checks" / f"{artifact}.json"


def fingerprint(question: dict[str, Any]) -> str:
    """A digest of everything that decides an answer."""
    text = json.dumps({"form": FORM, **question}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
