"""The verb `release check`: is this folder the release that was built, whole and by whom it says?

In: a release, or one repository of it as downloaded; perhaps a public key. Out: a `Checked`: one
Outcome for each thing that was looked at, in the words of every other check:

    manifest    valid under its schema; only artifacts that passed are in it
    files       every file that it lists is there with its size and sha256, and no other file is
    checksums   SHA256SUMS says the same as the manifest
    signature   model.sig holds for this folder, by the key given or by the one that came along
    leaks       no local path, token or private key in any file
    licence     the texts that the licence asks for are there, and its words are on the card
    edit        of edited artifacts, if there are any: each is by the edit that the manifest
                describes, and its card says that refusals were removed, and by which edit

Reads everything, writes nothing. Hub downloads may add `.gitattributes` and `.cache`; these two are
looked past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.staging import hash_file
from convert.workers import Steps
from verify.check import EXIT_CODES, Finding, Outcome, State, Verdict, total_state
from verify.release import leaks, signing
from verify.release.check_words import check_edit, check_licence, decided, passed
from verify.release.manifest import MANIFEST_NAME, NOT_LISTED, SUMS_NAME, read_manifest, sums_text
from verify.release.placing import SIDE_FOLDERS

_OF_THE_HUB = (".gitattributes", ".cache")


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found about one release."""

    name: str
    repository: str | None
    repositories: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def state(self) -> State:
        """The worst outcome."""
        return total_state(outcome.verdict.state for outcome in self.outcomes)

    @property
    def passed(self) -> bool:
        """Whether everything is as it should be."""
        return self.state is State.PASS

    @property
    def exit_code(self) -> int:
        """0 whole, 1 not."""
        return EXIT_CODES[self.state]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        return {
            "schema_version": 1,
            "state": self.state.value,
            **asdict(self),
            "outcomes": outcomes,
        }


def check_release(
    folder: Path, by: signing.Identity | None = None, on_file: Steps | None = None
) -> Checked:
    """Check the release, or the repository, in `folder`.

    With `by`, the signature must be there and be theirs. Raises InputError where there is no
    manifest to check against at all.
    """
    manifest = read_manifest(folder)
    repositories = tuple(manifest["repositories"])
    whole = manifest["repository"] is None
    listed = {file["path"]: file for file in manifest["files"]}
    there = list(_files(folder, whole=whole))
    outcomes = (
        passed("manifest", f"{len(manifest['artifacts'])} artifacts, every one passed its gate"),
        _check_files(folder, listed, there, on_file),
        _check_sums(folder, manifest),
        _check_signature(folder, manifest, by, repositories if whole else ()),
        _check_leaks(folder, there),
        check_licence(folder, manifest, repositories if whole else ("",)),
        *check_edit(folder, manifest, whole=whole),
    )
    return Checked(manifest["name"], manifest["repository"], repositories, outcomes)


def _files(folder: Path, *, whole: bool) -> Iterator[str]:
    """Every file, as paths; what lies beside a release in its output folder left out."""
    past = (*_OF_THE_HUB, *(SIDE_FOLDERS if whole else ()))
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] not in past and (path.is_symlink() or not path.is_dir()):
            yield name.as_posix()


def _check_files(
    folder: Path,
    listed: Mapping[str, Mapping[str, Any]],
    there: Sequence[str],
    on_file: Steps | None,
) -> Outcome:
    findings = [
        Finding(name, "is there, and the manifest does not list it")
        for name in there
        if name not in listed and name not in NOT_LISTED
    ]
    for number, (name, entry) in enumerate(listed.items()):
        wrong = _wrong_with(folder / name, entry)
        if wrong:
            findings.append(Finding(name, wrong))
        if on_file:
            on_file(name, number + 1, len(listed))
    return decided("files", f"{len(listed):,} files as listed, no other", findings)


def _wrong_with(path: Path, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with one listed file."""
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != entry["size_bytes"]:
            return f"{size:,} bytes; expected {entry['size_bytes']:,}"
        if (digest := hash_file(path)) != entry["sha256"]:
            return f"sha256 {digest}; expected {entry['sha256']}"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _check_sums(folder: Path, manifest: Mapping[str, Any]) -> Outcome:
    expected = sums_text(manifest, hash_file(folder / MANIFEST_NAME))
    try:
        same = (folder / SUMS_NAME).read_text(encoding="utf-8") == expected
        findings = [] if same else [Finding(SUMS_NAME, "does not say what the manifest says")]
    except (OSError, UnicodeDecodeError):
        findings = [Finding(SUMS_NAME, "is missing or no text")]
    return decided("checksums", "SHA256SUMS agrees with the manifest", findings)


def _check_signature(
    folder: Path,
    manifest: Mapping[str, Any],
    by: signing.Identity | None,
    unsigned: Sequence[str],
) -> Outcome:
    method = manifest["signing"]
    if method is None and by is None:
        there = (folder / signing.SIGNATURE_NAME).exists()
        findings = [Finding(signing.SIGNATURE_NAME, "is there, but the manifest says unsigned")]
        return decided("signature", "not signed, and said to be so", findings if there else [])
    if method == "keyless" and by is None:
        reason = "signed without a key; say by whom with --identity and --issuer"
        return Outcome("signature", Verdict(State.NOT_ENOUGH_EVIDENCE, reason))
    own = "the key that came along: unchanged since it was signed, whoever signed it"
    whom = (by.identity or "the key given") if by else own
    ignored = (*unsigned, *(SIDE_FOLDERS if manifest["repository"] is None else ()), *_OF_THE_HUB)
    try:
        signing.check_signature(folder, by or signing.Identity(), ignored)
    except signing.BadSignature as error:
        return decided("signature", "", [Finding(signing.SIGNATURE_NAME, str(error))])
    return passed("signature", f"holds, by {whom}")


def _check_leaks(folder: Path, there: Sequence[str]) -> Outcome:
    findings = [
        finding
        for name in there
        if (folder / name).is_file()
        for finding in leaks.find_leaks(folder / name, name)
    ]
    return decided("leaks", "no local path, token or private key in any file", findings)


def require_whole(checked: Checked) -> None:
    """InputError unless everything passed: what is not whole is not passed on."""
    for outcome in checked.outcomes:
        if outcome.verdict.state is not State.PASS:
            raise InputError(f"{checked.name}: {outcome.check}: {outcome.verdict.reason}")
