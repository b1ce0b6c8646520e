"""Checks of a release that look at words: what a licence asks for, what an edited model must say.

In: the folder of a release or repository, and its manifest. Out: Outcomes. The words themselves are
in `licence.py` and where `abliterate verify` writes its part of a card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verify.abliteration.print_gate import REMOVAL_TITLE
from verify.check import Finding, Outcome, State, Verdict
from verify.release.card import CARD_NAME
from verify.release.licence import LLAMA, NOTICE_NAME


def check_licence(
    folder: Path, manifest: Mapping[str, Any], repositories: Sequence[str]
) -> Outcome:
    """Whether the texts and words that the licence asks for are in every repository."""
    licence = manifest["licence"]
    asked = LLAMA.get(licence["id"])
    findings = []
    for repository in repositories:
        place = folder / repository
        wanted = [*licence["texts"], CARD_NAME]
        findings += [
            Finding(f"{repository}/{name}".lstrip("/"), "is missing; the licence asks for it")
            for name in wanted
            if not (place / name).is_file()
        ]
        if asked:
            findings += _missing_words(place, CARD_NAME, asked.built_with, repository)
            findings += _missing_words(place, NOTICE_NAME, asked.notice, repository)
    findings += [
        Finding(licence["id"], f"{duty['duty']}: {duty['how']}")
        for duty in licence["duties"]
        if not duty["met"]
    ]
    return decided("licence", f"{licence['id']}: texts and words in every repository", findings)


def check_edit(folder: Path, manifest: Mapping[str, Any], *, whole: bool) -> list[Outcome]:
    """Whether edited artifacts are told from others; nothing where there are none."""
    edited = [entry for entry in manifest["artifacts"] if entry["edit"]]
    if not edited:
        return []
    described = manifest["inputs"].get("abliteration", {}).get("edit", {}).get("sha256")
    findings = [
        Finding(entry["name"], "is by another edit than the one that the manifest describes")
        for entry in edited
        if {entry["edit"]["sha256"], entry["recipe"].get("edit", {}).get("sha256")} != {described}
    ]
    for repository in sorted({e["path"].split("/")[0] if whole else "" for e in edited}):
        for words in (REMOVAL_TITLE, f"Edit `{described}`"):
            findings += _missing_words(folder / repository, CARD_NAME, words, repository)
    good = f"{len(edited)} artifacts by edit {str(described)[:12]}, and their cards say so"
    return [decided("edit", good, findings)]


def _missing_words(place: Path, name: str, words: str, repository: str) -> list[Finding]:
    try:
        if words in (place / name).read_text(encoding="utf-8"):
            return []
    except (OSError, UnicodeDecodeError):
        pass
    return [Finding(f"{repository}/{name}".lstrip("/"), f"lacks the words {words!r}")]


def passed(check: str, reason: str) -> Outcome:
    """An outcome without findings."""
    return Outcome(check, Verdict(State.PASS, reason))


def decided(check: str, good: str, findings: Sequence[Finding]) -> Outcome:
    """Passed if nothing was found, else failed with the first finding for its reason."""
    if not findings:
        return passed(check, good)
    first = findings[0]
    more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    reason = f"{first.subject}: {first.message}{more}"
    return Outcome(check, Verdict(State.FAIL, reason), tuple(findings))
