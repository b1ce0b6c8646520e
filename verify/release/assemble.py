"""The last step of a build: repositories put together, sealed, and moved into place.

In: the artifacts that passed. Out, in the output folder: one folder for each
repository with its artifacts, card, licence texts, reports, manifest, SHA256SUMS and signature, so
that each can be checked by itself wherever it is downloaded to; beside them the same papers for
the whole release, whose manifest names every file of every repository.

Everything is put together in the work folder and renamed into place when it is complete. Artifacts
are linked, not copied, where the file system can; each is hashed again on the way and must still be
what it was when it was made. A release that says the same as the one in place, up to the date, is
left as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from convert.errors import InputError, OutputError
from convert.job import tool_version
from convert.staging import hash_file
from verify.release import leaks, signing
from verify.release.card import CARD_NAME, CardFacts, card_text
from verify.release.gating import Gated, joined
from verify.release.licence import NOTICE_NAME, notice_text
from verify.release.manifest import (
    NOT_LISTED,
    SCHEMA_VERSION,
    Placed,
    artifact_entry,
    licence_entry,
    listed_files,
    read_manifest,
    recipe_entry,
    write_manifest,
)
from verify.release.placing import link, put_in_place
from verify.release.recipe import ReadRecipe
from verify.release.steps import Work
from verify.report.write import write_report


@dataclass(frozen=True, slots=True)
class Contents:
    """What a release is put together from."""

    facts: CardFacts
    source: Mapping[str, Any]
    inputs: Mapping[str, Any]
    tools: Mapping[str, Any]
    passed: Sequence[tuple[Gated, Sequence[Mapping[str, Any]]]]
    key: Path | None

    @property
    def read(self) -> ReadRecipe:
        """The recipe."""
        return self.facts.read


def repository_of(read: ReadRecipe, gated: Gated) -> str:
    """The repository that an artifact belongs to."""
    name = read.name_of(edited=gated.made.wanted.edited)
    if read.recipe.publish.repositories == "one":
        return name
    return f"{name}-GGUF" if gated.made.is_gguf else gated.made.artifact.name


def assemble(contents: Contents, work: Work, out: Path) -> bool:
    """Put the release together and into place; False if it was there already."""
    try:
        return _assemble(contents, work, out)
    except OSError as error:
        raise OutputError(
            f"{out}: the release cannot be put together: {error.strerror}; nothing of it is in"
            " place that is not whole, run again"
        ) from error


def _assemble(contents: Contents, work: Work, out: Path) -> bool:
    folder = work.fresh("next")
    groups: dict[str, list[Placed]] = {}
    for gated, fit in contents.passed:
        name = repository_of(contents.read, gated)
        alone = gated.made.planned.is_folder and name == gated.made.artifact.name
        path = "." if alone else gated.made.artifact.name
        groups.setdefault(name, []).append(Placed(gated, path, fit))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    everything: list[Placed] = []
    known: dict[str, str] = {}
    for name, placed in groups.items():
        hashes = _fill(contents, folder / name, name, placed)
        _seal(contents, folder / name, name, sorted(groups), placed, created, hashes)
        known |= {f"{name}/{path}": digest for path, digest in hashes.items()}
        everything += [_below(name, item) for item in placed]
    write_report(_report(contents, everything), folder)
    _seal(contents, folder, None, sorted(groups), everything, created, known)
    if _says_the_same(folder, out, sorted(groups)):
        shutil.rmtree(folder)
        return False
    put_in_place(folder, out, work)
    return True


def _fill(contents: Contents, folder: Path, name: str, placed: Sequence[Placed]) -> dict[str, str]:
    """Artifacts, licence texts, card and reports of one repository; hashes of the artifacts."""
    duties = contents.facts.duties
    hashes = {}
    for item in placed:
        made = item.gated.made
        for file in made.artifact.files:
            inner = file.path
            if item.path == ".":
                inner = file.path.partition("/")[2]
                if inner == CARD_NAME or inner in duties.texts:
                    continue  # the release's own takes its place
            link(made.folder / file.path, folder / inner)
            digest = hash_file(folder / inner)
            if digest != file.sha256:
                raise OutputError(
                    f"{made.folder / file.path}: has changed since it was made; remove {made.path}"
                    " and build again"
                )
            hashes[inner] = digest
    for text, path in duties.texts.items():
        shutil.copyfile(path, folder / text)
    notice = notice_text(duties)
    if notice is not None:
        (folder / NOTICE_NAME).write_text(notice, encoding="utf-8")
    (folder / CARD_NAME).write_text(card_text(contents.facts, name, placed), encoding="utf-8")
    write_report(_report(contents, placed), folder)
    return hashes


def _report(contents: Contents, placed: Sequence[Placed]) -> Any:
    return joined([item.gated.report for item in placed] or [contents.facts.report])


def _below(repository: str, placed: Placed) -> Placed:
    path = repository if placed.path == "." else f"{repository}/{placed.path}"
    return Placed(placed.gated, path, placed.fit)


def _seal(
    contents: Contents,
    folder: Path,
    repository: str | None,
    repositories: Sequence[str],
    placed: Sequence[Placed],
    created: str,
    known: Mapping[str, str],
) -> None:
    """Look for leaks, then write manifest, sums and signature of a filled folder."""
    method = contents.read.recipe.signing.method if contents.read.recipe.signing else None
    if contents.key is not None:
        public = signing.public_key_text(contents.key)
        (folder / signing.PUBLIC_KEY_NAME).write_bytes(public)
    if repository is None:
        _refuse_leaks(contents, folder)
    read = contents.read
    write_manifest(
        folder,
        {
            "schema_version": SCHEMA_VERSION,
            "created": created,
            "tool": tool_version(),
            "name": read.recipe.name,
            "repository": repository,
            "repositories": list(repositories),
            "source": dict(contents.source),
            "recipe": recipe_entry(read),
            "inputs": dict(contents.inputs),
            "tools": dict(contents.tools),
            "licence": licence_entry(contents.facts.duties),
            "signing": method,
            "artifacts": [artifact_entry(item) for item in placed],
            "withheld": list(contents.facts.withheld),
            "files": listed_files(folder, known),
        },
    )
    if method is not None:
        unsigned = repositories if repository is None else ()
        signing.sign(folder, contents.key, unsigned)


def _refuse_leaks(contents: Contents, folder: Path) -> None:
    """InputError if a file of the whole release names a folder of this machine, or holds a key."""
    read = contents.read
    folders = [folder, read.folder, Path.cwd(), Path.home(), Path(read.reference)]
    places = [place for p in folders if p.exists() and (place := leaks.Place.of(p))]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found = leaks.find_leaks(path, path.relative_to(folder).as_posix(), places)
        if found:
            raise InputError(
                f"{found[0].subject}: would carry {found[0].message} out of this machine; take it"
                " out of the source or the recipe"
            )


def _says_the_same(folder: Path, out: Path, repositories: Sequence[str]) -> bool:
    """Whether the release in `out` is whole and differs from the new one in its date only."""
    from verify.release.check import check_release

    try:
        for name in ("", *repositories):
            old, new = read_manifest(out / name), read_manifest(folder / name)
            if _undated(old) != _undated(new):
                return False
        return check_release(out).passed
    except InputError:
        return False


def _undated(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without its date, and without the hashes of papers that hold the date."""
    kept = [f for f in manifest["files"] if f["path"].rpartition("/")[2] not in NOT_LISTED]
    return {**manifest, "created": None, "files": kept}
