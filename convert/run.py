"""The second pass: read every weight once, write every output, publish what is complete.

In: a `Plan` and its checkpoint. Out: `Artifact`s under their final names. The phases of a run: look
at what is there already, take up what a stopped run left (`resume.py`), reserve the disk, reduce
what needs it, encode every block (`encoder.py`), flush, copy side files, hash, describe, rename.
Blocks are independent (offsets come from the plan), so they run on threads in any order, and again
after a crash: the bytes depend on nothing but the source and the plan.

A run that is stopped by what can be mended (Ctrl-C, a full disk, a read error, the machine) leaves
its staging folder, and the same command goes on from there. One that is stopped by a weight that
cannot be used, a source that changes, or a mistake of ours would end in the same way again: its
staging folder is removed. convert never imports quantize: the schemes arrive inside the plan.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from convert import blocks, staging
from convert.blocks import Done
from convert.checkpoint import Checkpoint
from convert.edited import READS, EditedCheckpoint
from convert.encoder import Encoder
from convert.errors import CheckpointError, OutputError
from convert.finishing import finish_files, paths_of, publish
from convert.journal import Binding, Journal, journal_path
from convert.memory import DEFAULT_MEMORY_BYTES, Memory, block_values, check_memory
from convert.plan import Plan, PlannedArtifact, plan_run
from convert.resume import (
    Bound,
    Claim,
    holds_work,
    is_published,
    open_journals,
    reserved_bytes,
    take_up,
)
from convert.staged_files import StagedFiles
from convert.staging import Artifact
from convert.workers import Meter, Progress, cores, run_all

RESUMABLE = "what is done is kept; run the same command again to go on from there"


@dataclass(frozen=True, slots=True)
class Result:
    """A finished artifact; `kept` if it was there already, complete and from the same inputs."""

    artifact: Artifact
    kept: bool


@dataclass(frozen=True, slots=True)
class _Pace:
    """How a run uses the machine; no byte depends on it."""

    threads: int
    memory_bytes: int
    on_progress: Progress | None
    later_bytes: int


def run(
    plan: Plan,
    checkpoint: Checkpoint,
    out: Path,
    *,
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    tool: str,
    force: bool = False,
    threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    on_progress: Progress | None = None,
    later_bytes: int = 0,
) -> list[Result]:
    """Make every artifact of `plan` in the folder `out`; those already there and equal are kept.

    `later_bytes` must be left on the disk for what is made after them.

    Raises OutputError when a name is taken by something else and `force` is not set, or when the
    disk is full; whatever is raised, nothing incomplete is left under a final name. An error after
    which the same call would go on where this one stopped carries the note `RESUMABLE`.
    """
    check_memory(plan, memory_bytes)
    bound = [(p, _binding(p, checkpoint, tool)) for p in plan.artifacts]
    stopped = (out / staging.STAGING_NAME).exists()  # a run, that is; it is mended first
    done, todo = ({}, []) if stopped else _split_finished(bound, out, force)
    if todo or stopped:
        # What the plan was made of is what `bound` is the fingerprint of.
        checkpoint.check_unchanged([*checkpoint.shards, *checkpoint.beside])
        pace = _Pace(threads or cores(), memory_bytes, on_progress, later_bytes)
        with staging.staging_folder(out) as folder:
            staging.check_names(out, (planned.name for planned, _ in bound))
            # Once more, now that nobody else writes here: another run may just have ended.
            done, todo = _split_finished(bound, out, force, folder)
            with _kept_if_resumable(folder, checkpoint, plan.artifacts):
                changed = _write_all(checkpoint, folder, take_up(folder, todo, done), pace)
                planned_now = [planned for planned, _ in todo]
                files = finish_files(planned_now, checkpoint, folder, pace.threads, on_progress)
                for planned, binding in todo:
                    artifact = Artifact(
                        name=planned.name,
                        target=planned.target,
                        files=tuple(files[path] for path in paths_of(planned)),
                        source=dict(source),
                        recipe=_recipe(recipe, checkpoint),
                        numerics=planned.numerics,
                        values_changed=changed[planned.name],
                        fingerprint=binding.fingerprint,
                        tool=tool,
                    )
                    publish(planned, artifact, folder, out)
                    done[planned.name] = Result(artifact, kept=False)
    return [done[artifact.name] for artifact in plan.artifacts]


def split_finished(
    planned: Sequence[PlannedArtifact], checkpoint: Checkpoint, tool: str, out: Path, force: bool
) -> tuple[dict[str, Result], list[PlannedArtifact]]:
    """What lies there complete and is kept, by name, and what is to be made.

    Raises OutputError where something else has the name and `force` is not set.
    """
    bound = [(one, _binding(one, checkpoint, tool)) for one in planned]
    done, todo = _split_finished(bound, out, force)
    return done, [one for one, _ in todo]


def _binding(planned: PlannedArtifact, checkpoint: Checkpoint, tool: str) -> Binding:
    return Binding(tool, checkpoint.fingerprint(), planned.fingerprint(checkpoint, tool))


def _split_finished(
    bound: Sequence[Bound], out: Path, force: bool, folder: Path | None = None
) -> tuple[dict[str, Result], list[Bound]]:
    """What is there already and what is to be made; `folder` knows what a stopped run published."""
    done: dict[str, Result] = {}
    todo: list[Bound] = []
    for planned, binding in bound:
        found = staging.finished(
            out, planned.name, is_folder=planned.is_folder, fingerprint=binding.fingerprint
        )
        if found and (not force or (folder and is_published(folder, planned, binding))):
            done[planned.name] = Result(found, kept=True)
            continue
        if (out / planned.name).exists() and not force:
            raise staging.in_the_way(out / planned.name)
        todo.append((planned, binding))
    return done, todo


@contextmanager
def _kept_if_resumable(
    folder: Path, checkpoint: Checkpoint, artifacts: Sequence[PlannedArtifact]
) -> Iterator[None]:
    """Empty the staging folder on the way out, unless another run could go on from there."""
    try:
        yield
    except BaseException as error:
        same = [one for one in artifacts if not checkpoint.has_changed(one.copies)]
        if _can_be_mended(error, checkpoint) and holds_work(folder, same):
            error.add_note(RESUMABLE)
        else:
            with suppress(OSError):  # what is to be told is why the run stopped
                _empty(folder)
        raise
    _empty(folder)


def _can_be_mended(error: BaseException, checkpoint: Checkpoint) -> bool:
    """Whether it may pass: a full disk, a read error; a changed source asks for other bytes."""
    passing = CheckpointError | OutputError | OSError | MemoryError
    mine = isinstance(error, Exception) and not isinstance(error, passing)
    return not mine and not checkpoint.has_changed(checkpoint.shards)


def _empty(folder: Path) -> None:
    for entry in staging.entries(folder):
        staging.remove(entry)


def plan_edited(artifacts: Sequence[PlannedArtifact], checkpoint: Checkpoint) -> Plan:
    """The plan of artifacts of a checkpoint, with the reads that its edits take."""
    edited = checkpoint.edits if isinstance(checkpoint, EditedCheckpoint) else ()
    return plan_run(artifacts, edited, READS)


def _recipe(recipe: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """What the sidecar says of how it was made; of an edited checkpoint, each tensor's record."""
    if not isinstance(checkpoint, EditedCheckpoint):
        return dict(recipe)
    untouched = [name for name in checkpoint.tensors if name not in checkpoint.edits]
    return {**recipe, "edited_tensors": dict(checkpoint.records), "untouched_tensors": untouched}


def disk_bytes(plan: Plan, checkpoint: Checkpoint) -> int:
    """Bytes on disk that the plan's outputs take, copied side files included."""
    copies = [copy for artifact in plan.artifacts for copy in artifact.copies]
    return plan.write_bytes + checkpoint.side_file_bytes(copies)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder.parent}: {needed:,} bytes are needed and {free:,} are free; make room or"
            " choose another --out"
        )


def _write_all(
    checkpoint: Checkpoint, folder: Path, claims: Sequence[Claim], pace: _Pace
) -> dict[str, int]:
    """Make every file whole and flush it; returns how many values changed, by artifact."""
    plan = plan_edited([claim.planned for claim in claims], checkpoint)
    there = reserved_bytes(folder, claims)
    _check_space(folder, disk_bytes(plan, checkpoint) - there + pace.later_bytes)
    checkpoint.open_shards()
    files = StagedFiles(folder)
    journals: list[Journal] = []
    try:
        files.create(plan.files)
        journals, done = open_journals(files, claims, pace.threads, pace.on_progress)
        by_file = {
            file.path: (journal, index)
            for claim, journal in zip(claims, journals, strict=True)
            for index, file in enumerate(claim.planned.files)
        }
        _encode_all(plan, checkpoint, files, by_file, done, pace)
        files.sync()
        checkpoint.check_unchanged(checkpoint.shards)
        return {c.planned.name: j.changed for c, j in zip(claims, journals, strict=True)}
    finally:
        files.close()
        for journal in journals:
            journal.close()
        if files.lost:  # what the journals speak of may be in the kernel's cache and nowhere else
            for claim in claims:
                with suppress(OSError):  # after such an error a disk may be read-only
                    journal_path(folder, claim.planned.name).unlink()


def _encode_all(
    plan: Plan,
    checkpoint: Checkpoint,
    files: StagedFiles,
    journals: Mapping[str, tuple[Journal, int]],
    done: Done,
    pace: _Pace,
) -> None:
    """Encode whatever is not `done`: groups are reduced first, then blocks go in any order."""
    values = block_values(pace.memory_bytes, pace.threads)
    to_reduce = blocks.reduction_bytes(plan, done)
    to_edit = READS * sum(info.size_bytes for info in plan.edited)
    total = plan.read_bytes - blocks.reduction_bytes(plan, Done()) - to_edit
    left = blocks.missing_bytes(plan, values, done) if done else total
    if isinstance(checkpoint, EditedCheckpoint):
        edited = Meter(pace.on_progress, to_edit)
        memory = Memory(pace.memory_bytes)
        edits = (partial(checkpoint.prepare, i, values, memory, edited) for i in plan.edited)
        run_all(pace.threads, edits)
    measured = Meter(pace.on_progress, to_reduce)
    encoded = Meter(pace.on_progress, total, total - left)
    encoder = Encoder(checkpoint, files, journals, Memory(pace.memory_bytes), values)
    groups = blocks.reductions(plan, done)
    run_all(pace.threads, (partial(encoder.reduce, *g, measured) for g in groups))
    units = blocks.pending(plan, values, done)
    ahead = islice(blocks.pending(plan, values, done), 2 * pace.threads, None)
    pairs = zip_longest(units, ahead)
    run_all(pace.threads, (partial(encoder.encode, *pair, done, encoded) for pair in pairs))
    encoder.write_computed(plan, done)
