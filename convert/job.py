"""The verbs that write: plan all outputs, then run, or only show the plan.

`make` is shared by `convert` (form only) and by `quantize`, which hands in planners for its own
targets. A `Job` is what both give back: the plan, and the artifacts if there was a run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert.edited import EditedCheckpoint, Edits
from convert.elsewhere import make_elsewhere
from convert.errors import InputError
from convert.memory import DEFAULT_MEMORY_BYTES, check_memory, working_memory_bytes
from convert.model import FLOAT_FILE_TYPES, Model, open_model, plan_float
from convert.plan import Plan, PlannedArtifact
from convert.run import Result, disk_bytes, plan_edited, run, split_finished
from convert.tokenizer_lints import Lint
from convert.workers import Progress

EDITED = "abliterated"
Planner = Callable[[Model, str], PlannedArtifact]
"""From a model and a target's name to a planned artifact."""
Filler = Callable[[Model, PlannedArtifact, Path, Progress | None], Mapping[str, Any]]
"""Computes an artifact's tensors into a folder; returns what its recipe is to say of that."""


def planners(max_file_bytes: int | None = None) -> dict[str, Planner]:
    """The targets that change form only."""
    return dict.fromkeys(FLOAT_FILE_TYPES, partial(plan_float, max_file_bytes=max_file_bytes))


@dataclass(frozen=True, slots=True)
class Job:
    """What a writing verb planned, and what it made (nothing in a dry run)."""

    name: str
    parameters: int
    plan: Plan
    disk_bytes: int
    memory_bytes: int
    lints: tuple[Lint, ...]
    results: tuple[Result, ...]


def tool_version() -> str:
    """This project's name and version, as sidecars record them."""
    return f"hermes-quant {version('hermes-quant')}"


def convert(
    model: str,
    out: Path,
    targets: Sequence[str],
    *,
    max_file_bytes: int | None = None,
    name: str | None = None,
    metadata: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Job:
    """Write `model` as GGUF in F32, F16 or BF16 into the folder `out`."""
    return make(
        model,
        out,
        targets,
        planners(max_file_bytes),
        name=name,
        metadata=metadata,
        recipe={} if max_file_bytes is None else {"max_file_bytes": max_file_bytes},
        force=force,
        dry_run=dry_run,
        memory_bytes=memory_bytes,
        threads=threads,
        on_progress=on_progress,
    )


def make(
    model: str,
    out: Path,
    targets: Sequence[str],
    known: Mapping[str, Planner],
    *,
    name: str | None,
    metadata: Path | None,
    recipe: Mapping[str, Any],
    force: bool,
    dry_run: bool,
    memory_bytes: int,
    threads: int | None,
    on_progress: Progress | None,
    edits: Callable[[Model], Edits] | None = None,
    elsewhere: Mapping[str, Filler] | None = None,
) -> Job:
    """Plan every target by its planner and run the plan over one read of the checkpoint.

    `edits` are what the checkpoint is read through; the outputs' names then say so. `elsewhere`
    names targets that no run of ours computes; they are made after the others, one by one.
    """
    wanted = list(dict.fromkeys(targets))
    unknown = [target for target in wanted if target not in known]
    if unknown or not wanted:
        what = f"unknown target {unknown[0]!r}" if unknown else "no target"
        raise InputError(f"{what}; --to takes {', '.join(known)}")
    with open_model(model, name, metadata) as opened:
        if edits is not None:
            given = edits(opened)
            opened.checkpoint = EditedCheckpoint.of(opened.checkpoint, given.by_tensor)
            opened.name = opened.name if name else f"{opened.name}-{EDITED}"
            recipe = {**recipe, "edit": dict(given.recipe)}
        plan = plan_edited([known[target](opened, target) for target in wanted], opened.checkpoint)
        check_memory(plan, memory_bytes)
        job = Job(
            name=opened.name,
            parameters=opened.parameters,
            plan=plan,
            disk_bytes=disk_bytes(plan, opened.checkpoint),
            memory_bytes=working_memory_bytes(plan, memory_bytes, threads or os.cpu_count() or 1),
            lints=opened.lints(),
            results=(),
        )
        if dry_run:
            return job
        results = _run(
            opened,
            plan.artifacts,
            out,
            elsewhere or {},
            recipe={"name": name, **recipe},
            force=force,
            threads=threads,
            memory_bytes=memory_bytes,
            on_progress=on_progress,
        )
        return replace(job, results=tuple(results))


def _run(
    model: Model,
    planned: Sequence[PlannedArtifact],
    out: Path,
    elsewhere: Mapping[str, Filler],
    *,
    recipe: Mapping[str, Any],
    force: bool,
    threads: int | None,
    memory_bytes: int,
    on_progress: Progress | None,
) -> list[Result]:
    """Make all that is planned: what is computed elsewhere after the rest, if it is not there."""
    ours = [artifact for artifact in planned if artifact.target not in elsewhere]
    others = [artifact for artifact in planned if artifact.target in elsewhere]
    done, todo = split_finished(others, model.checkpoint, tool_version(), out, force)
    if ours:
        made = run(
            plan_edited(ours, model.checkpoint),
            model.checkpoint,
            out,
            source=model.source(),
            recipe=recipe,
            tool=tool_version(),
            force=force,
            threads=threads,
            memory_bytes=memory_bytes,
            on_progress=on_progress,
        )
        done |= {result.artifact.name: result for result in made}
    for artifact in todo:
        filler = elsewhere[artifact.target]

        def fill(folder: Path, artifact: PlannedArtifact = artifact, by: Filler = filler) -> Any:
            return by(model, artifact, folder, on_progress)

        done[artifact.name] = make_elsewhere(
            artifact,
            model.checkpoint,
            out,
            fill,
            source=model.source(),
            recipe=recipe,
            tool=tool_version(),
            force=force,
            threads=threads or os.cpu_count() or 1,
            on_progress=on_progress,
        )
    return [done[artifact.name] for artifact in planned]
