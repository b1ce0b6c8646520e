"""What must not leave the machine a release was made on: its paths, and keys and tokens.

In: a file. Out: what was found in it, with the offset, and the secret itself cut short. Every byte
is looked at, weights too: the beginnings of all patterns are searched for as plain bytes, which is
as fast as reading, and only where one occurs the whole pattern is tried.

A path is only a leak with a name below somebody's home, since texts and vocabularies hold bare
`/home`. A build adds the folders it worked in, whatever they are called.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from verify.check import Finding

_NAME = rb"[A-Za-z0-9_.-]{1,64}"
_WORD = rb"[A-Za-z0-9_]"
PATTERNS: tuple[tuple[bytes, bytes, str], ...] = (
    (b"/home/", rb"/home/" + _NAME + rb"/" + _NAME, "a local path"),
    (b"/Users/", rb"/Users/" + _NAME + rb"/" + _NAME, "a local path"),
    (b"/root/", rb"/root/" + _NAME, "a local path"),
    (b":\\Users\\", rb":\\Users\\" + _NAME, "a local path"),
    (b":\\\\Users\\\\", rb":\\\\Users\\\\" + _NAME, "a local path"),
    (b"hf_", rb"hf_[A-Za-z0-9]{30,64}(?![A-Za-z0-9])", "a Hugging Face token"),
    (b"ghp_", rb"ghp_[A-Za-z0-9]{36}", "a GitHub token"),
    (b"ghs_", rb"ghs_[A-Za-z0-9]{36}", "a GitHub token"),
    (b"gho_", rb"gho_[A-Za-z0-9]{36}", "a GitHub token"),
    (b"github_pat_", rb"github_pat_[A-Za-z0-9_]{40,}", "a GitHub token"),
    (b"AKIA", rb"AKIA[0-9A-Z]{16}(?![0-9A-Za-z])", "an AWS key"),
    (b"sk-", rb"sk-[A-Za-z0-9_-]{40,}", "an API key"),
    (b"PRIVATE KEY-----", rb"PRIVATE KEY-----", "a private key"),
)
"""What a pattern begins with, the whole of it, and what it is."""
_BEFORE = re.compile(_WORD)
_FINDINGS = 3
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Place:
    """A folder of this machine that no file may name."""

    text: bytes

    @classmethod
    def of(cls, folder: Path) -> Place | None:
        """The folder's own path; None for one so short that it says nothing (`/`, `/tmp`)."""
        text = str(folder.resolve())
        return cls(text.encode()) if text.count("/") > 1 else None


def find_leaks(path: Path, name: str, places: Sequence[Place] = ()) -> list[Finding]:
    """Leaks in one file, the first few."""
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = []
        for offset, what, text in _search(data, places):
            shown = text[:_SHOWN].decode("ascii", "replace")
            more = "..." if len(text) > _SHOWN else ""
            found.append(Finding(name, f"{what} at byte {offset}: {shown}{more}"))
            if len(found) == _FINDINGS:
                break
    return found


def _search(data: mmap.mmap, places: Sequence[Place]) -> Iterator[tuple[int, str, bytes]]:
    for place in places:
        offset = data.find(place.text)
        if offset >= 0:
            yield offset, "a folder of the build machine", place.text
    for beginning, pattern, what in PATTERNS:
        whole = re.compile(pattern)
        offset = data.find(beginning)
        while offset >= 0:
            match = whole.match(data, offset)
            inside = offset and beginning[:1].isalpha() and _BEFORE.match(data[offset - 1 : offset])
            if match and not inside:
                yield offset, what, match[0]
                break
            offset = data.find(beginning, offset + 1)
