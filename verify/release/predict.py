"""`release build --dry-run`: what a recipe would make and need, from headers alone.

In: a recipe; its source as a folder, a hub id (headers come by HTTP ranges) or a folder with just
config.json, from which the family's rules say which tensors there are. Out: a `Prediction`: every
output with its size, bytes to read and write, disk, memory to make and to verify, and the time for
the work on weights. No weight is read and nothing is written.

Time is that of `timing.py`; the disk is not in it. Memory to verify is that of the reference in
float32, four bytes a parameter, loaded whole, and of the largest artifact. Edited artifacts have
the sizes of unedited ones, so the edit need not be there yet: a remark says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.edited import READS
from convert.errors import CheckpointError, InputError
from convert.hub import Origin, is_on_disk, parse_hub_id
from convert.memory import DEFAULT_MEMORY_BYTES, working_memory_bytes
from convert.model import Model, recognise_model
from convert.model_spec import read_json_object, read_model_spec
from convert.plan import Plan, PlannedArtifact, plan_run
from convert.size import parse_size
from convert.workers import cores
from quantize.abliteration.edit_folder import read_edit
from quantize.calibration import read_calibration
from quantize.fit import remote
from quantize.fit.makeable import headers_from_config
from quantize.gguf_targets import Options as GgufOptions
from quantize.gguf_targets import plan_own_mixture
from quantize.importance import read_importance
from quantize.job import planners
from quantize.own_mixture import SUFFIXES, read_own_mixture
from verify.release.beforehand import choose, licence_of
from verify.release.fits import check_devices
from verify.release.gating_edited import missing_edit
from verify.release.licence import Duties
from verify.release.make import overrides_of
from verify.release.recipe import ReadRecipe, Wanted, read_recipe
from verify.release.sections import ArtifactSpec
from verify.release.timing import encoding_seconds

_REFERENCE_BYTES_PER_PARAMETER = 4


@dataclass(frozen=True, slots=True)
class PlannedOutput:
    """One output: `size_is_exact` is false where the vocabulary is not known, or it is a limit."""

    name: str
    target: str
    size_bytes: int
    bits_per_weight: float
    size_is_exact: bool


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a build would do; seconds are those of the work on weights with `threads` threads."""

    name: str
    parameters: int
    outputs: tuple[PlannedOutput, ...]
    read_bytes: int
    write_bytes: int
    disk_bytes: int
    make_memory_bytes: int
    verify_memory_bytes: int
    threads: int
    seconds: float
    duties: Duties
    remarks: tuple[str, ...]


def predict(
    recipe: Path,
    *,
    source: str | None = None,
    only: Sequence[str] = (),
    threads: int | None = None,
) -> Prediction:
    """What building `recipe` would make and need."""
    read = read_recipe(recipe, source)
    wanted = choose(read, only)
    check_devices(read)
    model, has_weights = _open_headers(read)
    with model:
        exact = _has_vocabulary(model)
        halves = [
            _plan_half(
                read,
                [one for one in wanted if one.edited == edited],
                model,
                edited=edited,
                is_exact=lambda found: exact or (found.is_folder and has_weights),
            )
            for edited in (False, True)
        ]
        outputs = [output for half in halves for output in half.outputs]
        plans, workers = [half.plan for half in halves], threads or cores()
        sizes = [output.size_bytes for output in outputs]
        remarks = () if exact else ("no tokenizer here: GGUF sizes lack the vocabulary",)
        return Prediction(
            name=read.recipe.name,
            parameters=model.parameters,
            outputs=tuple(outputs),
            read_bytes=sum(plan.read_bytes for plan in plans),
            write_bytes=sum(sizes),
            disk_bytes=sum(sizes) + sum(half.beside_bytes for half in halves),
            make_memory_bytes=max(
                working_memory_bytes(plan, DEFAULT_MEMORY_BYTES, workers) for plan in plans
            ),
            verify_memory_bytes=_REFERENCE_BYTES_PER_PARAMETER * model.parameters + max(sizes),
            threads=workers,
            seconds=sum(encoding_seconds(plan) for plan in plans) / workers,
            duties=licence_of(read, model),
            remarks=(*remarks, *(remark for half in halves for remark in half.remarks)),
        )


@dataclass(frozen=True, slots=True)
class _Half:
    """The plain or the edited artifacts, which one read makes; `beside` are copies and controls."""

    outputs: list[PlannedOutput]
    plan: Plan
    beside_bytes: int
    remarks: tuple[str, ...]


def _plan_half(
    read: ReadRecipe,
    wanted: Sequence[Wanted],
    model: Model,
    *,
    edited: bool,
    is_exact: Callable[[PlannedArtifact], bool],
) -> _Half:
    model.name = read.name_of(edited=edited)
    planned: list[PlannedArtifact] = []
    outputs: list[PlannedOutput] = []
    for one in wanted:
        if one.spec.to is None:
            outputs.append(_limit(one.spec, model))
            continue
        found = _planner(read, one.spec)(model, one.spec.to)
        planned.append(found)
        bits = 8 * found.size_bytes / model.parameters
        outputs.append(
            PlannedOutput(found.name, one.target, found.size_bytes, bits, is_exact(found))
        )
    names, remarks = _edited_tensors(read, model) if edited and wanted else ((), ())
    plan = plan_run(planned, names, READS)
    copies = (model.checkpoint.path / copy for p in planned for copy in p.copies)
    beside = sum(copy.stat().st_size for copy in copies)
    if edited and wanted:
        beside += len(read.abliteration.controls) * (beside + plan.write_bytes)
    return _Half(outputs, plan, beside, remarks)


def _edited_tensors(read: ReadRecipe, model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tensors that the edit names, and what is to be said where it is not there yet."""
    folder = read.folder / read.abliteration.edit
    if folder.is_dir():
        return tuple(read_edit(folder).edits_of(model).by_tensor), ()
    return (), (f"{missing_edit(read)}; sizes do not depend on it, bytes read lack its own",)


def _open_headers(read: ReadRecipe) -> tuple[Model, bool]:
    """The model as far as headers tell, and whether its files are known."""
    reference, name = read.reference, read.recipe.name
    if not is_on_disk(reference):
        origin, checkpoint = remote.open_headers(remote.list_repository(*parse_hub_id(reference)))
        return recognise_model(origin, checkpoint, name), True
    folder = Path(reference)
    if any(folder.glob("*.safetensors*")):
        return recognise_model(Origin(folder), Checkpoint.open(folder), name), True
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"{reference}: holds no config.json to plan from")
    spec = read_model_spec(config)
    tensors = headers_from_config(spec, read_json_object(config))
    checkpoint = Checkpoint(folder, spec, ("model.safetensors",), tensors, {})
    return recognise_model(Origin(folder), checkpoint, name), False


def _has_vocabulary(model: Model) -> bool:
    try:
        return bool(model.tokenizer_fields)
    except CheckpointError:
        model.tokenizer_fields = []
        return False


def _planner(read: ReadRecipe, artifact: ArtifactSpec) -> Any:
    options = read.recipe.options_of(artifact)
    imatrix = read.imatrix(options)
    calibration = read.path(options.calibration)
    gguf = GgufOptions(
        read_importance(imatrix) if imatrix else None,
        overrides_of(options),
        parse_size(options.split_max_size) if options.split_max_size else None,
    )
    assert artifact.to is not None
    if artifact.to.endswith(SUFFIXES):
        mixture = read_own_mixture(read.folder / artifact.to)
        return partial(plan_own_mixture, options=gguf, mixture=mixture)
    given = read_calibration(calibration) if calibration else None
    return planners(gguf, options.numerics, given, options.kv_cache_fp8)[artifact.to]


def _limit(artifact: ArtifactSpec, model: Model) -> PlannedOutput:
    """A mixture fitted to a size: which one is measured on the weights, its size is the limit."""
    if artifact.fit_bytes:
        size = parse_size(artifact.fit_bytes)
    else:
        size = int((artifact.bits_per_weight or 0) * model.parameters / 8)
    bits = 8 * size / model.parameters
    return PlannedOutput(f"{model.name}-{artifact.target}", artifact.target, size, bits, False)
