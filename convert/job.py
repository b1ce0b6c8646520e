"""The verbs that write: plan all outputs, then run, or only show the plan.

`make` is shared by `convert` (form only) and by `quantize`, which hands in planners for its own
targets. A `Job` is what both give back: the plan, and the artifacts if there was a run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert.edited import EditedCheckpoint, Edits
from convert.elsewhere import make_elsewhere, peak_bytes
from convert.errors import InputError
from convert.memory import DEFAULT_MEMORY_BYTES, check_memory, working_memory_bytes
from convert.model import FLOAT_FILE_TYPES, Model, open_model, plan_float
from convert.place import Place
from convert.plan import Plan, PlannedArtifact
from convert.run import Result, disk_bytes, plan_edited, run, split_finished
from convert.tokenizer_lints import Lint
from convert.workers import Progress, cores

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
        Place(out, split=max_file_bytes is not None, force=force),
        targets,
        planners(max_file_bytes),
        name=name,
        metadata=metadata,
        recipe={} if max_file_bytes is None else {"max_file_bytes": max_file_bytes},
        dry_run=dry_run,
        memory_bytes=memory_bytes,
        threads=threads,
        on_progress=on_progress,
    )


def make(
    model: str,
    place: Place,
    targets: Sequence[str],
    known: Mapping[str, Planner],
    *,
    name: str | None,
    metadata: Path | None,
    recipe: Mapping[str, Any],
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
    _check_targets(wanted, known)
    with _opened(model, name, metadata, edits) as (opened, edited):
        if not dry_run:
            place.check(opened.name, wanted, tool_version())
        plan = plan_edited([known[target](opened, target) for target in wanted], opened.checkpoint)
        check_memory(plan, memory_bytes)
        job = Job(
            name=opened.name,
            parameters=opened.parameters,
            plan=plan,
            disk_bytes=disk_bytes(plan, opened.checkpoint),
            memory_bytes=working_memory_bytes(plan, memory_bytes, threads or cores()),
            lints=opened.lints(),
            results=(),
        )
        if dry_run:
            return job
        results = _run(
            opened,
            plan.artifacts,
            place,
            elsewhere or {},
            recipe={"name": name, **recipe, **edited},
            threads=threads or cores(),
            memory_bytes=memory_bytes,
            on_progress=on_progress,
        )
        return replace(job, results=tuple(results))


def look_ahead(
    model: str,
    place: Place,
    targets: Sequence[str],
    known: Collection[str],
    *,
    name: str | None,
    metadata: Path | None,
    edits: Callable[[Model], Edits] | None,
) -> None:
    """Raise what `make` would raise of targets, headers and place; for what is computed before."""
    _check_targets(targets, known)
    with _opened(model, name, metadata, edits) as (opened, _):
        place.check(opened.name, targets, tool_version())


def _check_targets(targets: Sequence[str], known: Collection[str]) -> None:
    unknown = [target for target in targets if target not in known]
    if unknown or not targets:
        what = f"unknown target {unknown[0]!r}" if unknown else "no target"
        raise InputError(f"{what}; --to takes {', '.join(known)}")


@contextmanager
def _opened(
    model: str, name: str | None, metadata: Path | None, edits: Callable[[Model], Edits] | None
) -> Iterator[tuple[Model, dict[str, Any]]]:
    """The model as it is to be read, under its outputs' name; what edits add to the recipe."""
    with open_model(model, name, metadata) as opened:
        if edits is None:
            yield opened, {}
            return
        given = edits(opened)
        opened.checkpoint = EditedCheckpoint.of(opened.checkpoint, given.by_tensor)
        opened.name = opened.name if name else f"{opened.name}-{EDITED}"
        yield opened, {"edit": dict(given.recipe)}


def _run(
    model: Model,
    planned: Sequence[PlannedArtifact],
    place: Place,
    elsewhere: Mapping[str, Filler],
    *,
    recipe: Mapping[str, Any],
    threads: int,
    memory_bytes: int,
    on_progress: Progress | None,
) -> list[Result]:
    """Make all that is planned: what is computed elsewhere after the rest, if it is not there."""
    ours = [artifact for artifact in planned if artifact.target not in elsewhere]
    others = [artifact for artifact in planned if artifact.target in elsewhere]
    tool, out, force = tool_version(), place.out, place.force
    done, todo = split_finished(others, model.checkpoint, tool, out, force)
    if ours:
        made = run(
            plan_edited(ours, model.checkpoint),
            model.checkpoint,
            out,
            source=model.source(),
            recipe=recipe,
            tool=tool,
            force=force,
            threads=threads,
            memory_bytes=memory_bytes,
            on_progress=on_progress,
            later_bytes=peak_bytes(todo, model.checkpoint),
        )
        done |= {result.artifact.name: result for result in made}
    for index, artifact in enumerate(todo):
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
            tool=tool,
            force=force,
            threads=threads,
            on_progress=on_progress,
            later=todo[index + 1 :],
        )
    return [done[artifact.name] for artifact in planned]
