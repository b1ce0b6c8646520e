"""The first step of a build: every artifact of the recipe, in as few reads as can be.

In: a recipe and which of its artifacts are wanted. Out: `Made` for each, in the recipe's order: the
plan it was made by and the finished files. Artifacts with equal options share one read of the
checkpoint; what is there already from the same source, options and version is kept, and a run that
was stopped goes on (`convert/run.py`). Edited artifacts come from a second read, through the edit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from convert import staging
from convert.checkpoint import Checkpoint
from convert.edited import EditedCheckpoint
from convert.errors import OutputError
from convert.job import Job, tool_version
from convert.memory import DEFAULT_MEMORY_BYTES
from convert.model import Model
from convert.plan import PlannedArtifact
from convert.size import parse_size
from convert.staging import Artifact
from convert.tokenizer_lints import Lint
from convert.workers import Progress
from quantize.abliteration.edit_folder import read_edit
from quantize.choice import Overrides, parse_pattern, parse_type
from quantize.job import quantize
from quantize.own_mixture import SUFFIXES
from verify.release.recipe import ReadRecipe, Wanted
from verify.release.sections import ArtifactSpec, Options

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True, slots=True)
class Made:
    """One finished artifact of a recipe; `folder` is where its files lie."""

    wanted: Wanted
    planned: PlannedArtifact
    artifact: Artifact
    folder: Path
    parameters: int
    kept: bool
    lints: tuple[Lint, ...]

    @property
    def path(self) -> Path:
        """What an engine opens."""
        return self.folder / self.artifact.name

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp loads it; otherwise vLLM does."""
        return any(file.path.endswith(GGUF_SUFFIX) for file in self.artifact.files)

    @property
    def tensor_types(self) -> dict[str, str]:
        """The stored type of every tensor, by the name it has in the file."""
        return {
            placed.tensor.name + part.suffix: part.dtype
            for file in self.planned.files
            for placed in file.tensors
            for part in placed.tensor.parts
        }


@dataclass(frozen=True, slots=True)
class Place:
    """Where artifacts go, what they are called, and the edit that they are made through."""

    folder: Path
    name: str
    edit: Path | None = None


def make_artifacts(
    read: ReadRecipe,
    wanted: Sequence[Wanted],
    model: Model,
    place: Place,
    *,
    threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    on_progress: Progress | None = None,
) -> list[Made]:
    """Make all that are wanted at `place`; what has become stale there is made anew."""
    metadata = _write_metadata(read, place.folder)
    found: dict[str, Made] = {}
    for options, group in _groups(read, wanted):
        run = partial(
            _job_of(read, options, [one.spec for one in group], place, metadata),
            memory_bytes=memory_bytes,
            threads=threads,
            on_progress=on_progress,
        )
        try:
            job = run()
        except OutputError:
            if not _removed_stale(run(dry_run=True).plan.artifacts, _source(model, place), place):
                raise
            job = run()
        for one, planned, result in zip(
            sorted(group, key=lambda one: one.spec.to is None),
            job.plan.artifacts,
            job.results,
            strict=True,
        ):
            found[one.target] = Made(
                one, planned, result.artifact, place.folder, job.parameters, result.kept, job.lints
            )
    return [found[one.target] for one in wanted]


def _job_of(
    read: ReadRecipe,
    options: Options,
    group: Sequence[ArtifactSpec],
    place: Place,
    metadata: Path | None,
) -> partial[Job]:
    """`quantize` with everything that decides the bytes of a group."""
    by_size = next((a for a in group if a.to is None), None)
    return partial(
        quantize,
        read.reference,
        place.folder,
        [_target(read, artifact) for artifact in group if artifact.to],
        fit_bytes=parse_size(by_size.fit_bytes) if by_size and by_size.fit_bytes else None,
        bits_per_weight=by_size.bits_per_weight if by_size else None,
        imatrix=read.imatrix(options),
        abliterate=place.edit,
        calibration=read.path(options.calibration),
        kv_cache=options.kv_cache_fp8,
        overrides=overrides_of(options),
        max_file_bytes=parse_size(options.split_max_size) if options.split_max_size else None,
        numerics=options.numerics,
        name=place.name,
        metadata=metadata,
    )


def _source(model: Model, place: Place) -> Checkpoint:
    """What the fingerprints of artifacts at `place` speak of; it is not read."""
    if place.edit is None:
        return model.checkpoint
    return EditedCheckpoint.of(model.checkpoint, read_edit(place.edit).edits_of(model).by_tensor)


def _removed_stale(
    planned: Iterable[PlannedArtifact], checkpoint: Checkpoint, place: Place
) -> bool:
    """Remove what an earlier recipe, source or version made under the same names.

    The folder is the build's own, and what it holds can be made again.
    """
    removed, out = False, place.folder
    for one in planned:
        digest = one.fingerprint(checkpoint, tool_version())
        fresh = staging.finished(out, one.name, is_folder=one.is_folder, fingerprint=digest)
        if fresh is None and (out / one.name).exists():
            staging.remove(out / one.name)
            staging.sidecar_path(out, one.name, is_folder=False).unlink(missing_ok=True)
            removed = True
    return removed


def _groups(read: ReadRecipe, wanted: Iterable[Wanted]) -> list[tuple[Options, list[Wanted]]]:
    """Artifacts that can share a read; each that is fitted to a size has one of its own."""
    groups: list[tuple[Options, list[Wanted]]] = []
    for one in wanted:
        options = read.recipe.options_of(one.spec)
        for known, group in groups:
            if known == options and one.spec.to and all(other.spec.to for other in group):
                group.append(one)
                break
        else:
            groups.append((options, [one]))
    return groups


def _target(read: ReadRecipe, artifact: ArtifactSpec) -> str:
    assert artifact.to is not None
    return str(read.folder / artifact.to) if artifact.to.endswith(SUFFIXES) else artifact.to


def overrides_of(options: Options) -> Overrides:
    """The overrides by tensor, as `quantize` takes them."""
    return Overrides(
        patterns=tuple(parse_pattern(text) for text in options.tensor_types),
        output_type=parse_type(options.output_type) if options.output_type else None,
        embedding_type=parse_type(options.embedding_type) if options.embedding_type else None,
        leave_output=options.leave_output,
    )


def _write_metadata(read: ReadRecipe, out: Path) -> Path | None:
    """The recipe's GGUF metadata as the file that `quantize --metadata` reads."""
    if not read.recipe.metadata:
        return None
    path = out / "metadata.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(read.recipe.metadata))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
    return path
