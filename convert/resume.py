"""What a stopped run left in the staging folder: looked at, believed as far as it proves true.

In: the artifacts that are to be made, each with what its bytes depend on. Out: their journals, and
the rows that need not be made again. An artifact is taken up where its journal is bound to the
same source, recipe and tool; every block it speaks of is read again, from the disk and not from the
kernel's cache, and its checksum compared, and only blocks that are missing or differ are made.
Everything else in the folder is removed, and a line of log says whose work that was and why it is
of no use.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.blocks import Done
from convert.journal import SUFFIX, Binding, Journal, Records, journal_path, read_journal
from convert.plan import PlannedArtifact, part_spans
from convert.staged_files import DiskErrors, StagedFiles
from convert.staging import entries, remove
from convert.workers import Meter, Progress, run_all

Spans = list[tuple[int, int]]
"""Offsets and sizes."""
Bound = tuple[PlannedArtifact, Binding]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Claim:
    """An artifact and what its journal says of it, not yet compared with the files."""

    planned: PlannedArtifact
    binding: Binding
    records: Records | None


def holds_work(staging: Path, artifacts: Iterable[PlannedArtifact]) -> bool:
    """Whether a later run could take up anything of these from here."""
    found = (read_journal(journal_path(staging, planned.name)) for planned in artifacts)
    return any(len(journal[1]) for journal in found if journal)


def is_published(staging: Path, planned: PlannedArtifact, binding: Binding) -> bool:
    """Whether the run that left this folder had finished the artifact already."""
    found = read_journal(journal_path(staging, planned.name))
    return bool(found and found[0] == binding and not (staging / planned.name).exists())


def take_up(staging: Path, todo: Sequence[Bound], finished: Collection[str]) -> list[Claim]:
    """Read the journals of what is to be made; remove what is of no use, saying why."""
    claims, kept = [], {journal_path(staging, name).name for name in finished}
    for planned, binding in todo:
        path = journal_path(staging, planned.name)
        found = read_journal(path)
        if found and found[0] == binding:
            kept |= {planned.name, path.name}
        elif found:
            _say_why(planned.name, found[0].difference(binding))
        elif path.exists():
            _say_why(planned.name, "its journal cannot be read")
        claims.append(Claim(planned, binding, found[1] if planned.name in kept and found else None))
    asked = {planned.name for planned, _ in todo}
    for entry in entries(staging):
        if entry.name in kept:
            continue
        name = entry.name.removesuffix(SUFFIX)
        if name != entry.name and name not in asked:
            _say_why(name, "it is not asked for now")
        remove(entry)
    return claims


def _say_why(name: str, reason: str) -> None:
    _log.warning("%s: what a stopped run had made of it is removed: %s", name, reason)


def reserved_bytes(staging: Path, claims: Sequence[Claim]) -> int:
    """Bytes of the disk that files taken up hold already."""
    paths = (staging / file.path for claim in claims for file in claim.planned.files)
    return sum(path.stat().st_blocks * 512 for path in paths if path.is_file())


def open_journals(
    files: StagedFiles, claims: Sequence[Claim], threads: int, on_progress: Progress | None
) -> tuple[list[Journal], Done]:
    """Check every claim against the files; each journal goes on with what proved true."""
    sound = [np.zeros(0 if c.records is None else len(c.records), dtype=np.bool_) for c in claims]
    for claim in claims:
        if claim.records is not None:
            for file in claim.planned.files:
                files.forget_cached(file.path)
    meter = Meter(on_progress, sum(size for *_, spans in _blocks(claims) for _, size in spans))
    run_all(threads, (partial(_check, files, meter, sound, *block) for block in _blocks(claims)))
    journals, proven = [], []
    for claim, mask in zip(claims, sound, strict=True):
        records = None if claim.records is None else claim.records[mask]
        proven.append(replace(claim, records=records))
        path = journal_path(files.folder, claim.planned.name)
        with DiskErrors(path):
            journals.append(Journal(path, claim.binding, records))
    return journals, Done(_rows(proven))


def _rows(claims: Sequence[Claim]) -> Iterator[tuple[tuple[str, int], tuple[int, int]]]:
    """Slot and rows of every record, in the order of the files."""
    for claim in claims:
        for record in () if claim.records is None else claim.records:
            file = claim.planned.files[record["file"]].path
            yield (file, int(record["tensor"])), (int(record["start"]), int(record["stop"]))


def _blocks(claims: Sequence[Claim]) -> Iterator[tuple[int, int, str, int, Spans]]:
    """Of every record: its claim, its place there, its file, its checksum, where its bytes lie."""
    for index, claim in enumerate(claims):
        for number, record in enumerate(() if claim.records is None else claim.records):
            file = claim.planned.files[record["file"]]
            placed = file.tensors[record["tensor"]]
            rows = (int(record["start"]), int(record["stop"]))
            spans = part_spans(placed.tensor, placed.offsets, *rows)
            yield index, number, file.path, int(record["checksum"]), spans


def _check(
    files: StagedFiles,
    meter: Meter,
    sound: Sequence[NDArray[np.bool_]],
    index: int,
    number: int,
    file: str,
    checksum: int,
    spans: Spans,
) -> None:
    sound[index][number] = files.checksum(file, spans) == checksum
    meter.add(sum(size for _, size in spans), f"checking {file}")
