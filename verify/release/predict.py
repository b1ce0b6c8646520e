"""`release build --dry-run`: what a recipe would make and need, from headers alone.

In: a recipe; its source as a folder, a hub id (headers come by HTTP ranges) or a folder with just
config.json, from which the family's rules say which tensors there are. Out: a `Prediction`: every
output with its size, bytes to read and write, disk, memory to make and to verify, and the time for
the work on weights. No weight is read and nothing is written.

Time is measured here and now: each kernel that the plan uses encodes one block of random values,
and the plan says how many values there are. The disk is not in it. Memory to verify is that of
the reference in float32, four bytes a parameter, loaded whole, and of the largest artifact.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, InputError
from convert.hub import Origin, is_on_disk, parse_hub_id
from convert.memory import DEFAULT_MEMORY_BYTES, working_memory_bytes
from convert.model import Model, recognise_model
from convert.model_spec import read_json_object, read_model_spec
from convert.output_tensor import OutputTensor, Scheme
from convert.plan import Plan, PlannedArtifact, plan_run
from convert.size import parse_size
from convert.tensor import DTYPES, Block
from quantize.calibration import read_calibration
from quantize.fit import remote
from quantize.fit.makeable import headers_from_config
from quantize.gguf_targets import Options as GgufOptions
from quantize.gguf_targets import plan_own_mixture
from quantize.importance import read_importance
from quantize.job import planners
from quantize.own_mixture import SUFFIXES, read_own_mixture
from verify.release.build import choose, licence_of
from verify.release.fits import check_devices
from verify.release.licence import Duties
from verify.release.make import overrides_of
from verify.release.recipe import ArtifactSpec, ReadRecipe, read_recipe

_SAMPLE_VALUES = 1 << 18
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
        planned: list[PlannedArtifact] = []
        outputs: list[PlannedOutput] = []
        for artifact in wanted:
            if artifact.to is None:
                outputs.append(_limit(artifact, model))
                continue
            found = _planner(read, artifact)(model, artifact.to)
            planned.append(found)
            bits = 8 * found.size_bytes / model.parameters
            known = exact or (found.is_folder and has_weights)
            outputs.append(PlannedOutput(found.name, found.target, found.size_bytes, bits, known))
        plan, cores = plan_run(planned), threads or os.cpu_count() or 1
        sizes = [output.size_bytes for output in outputs]
        copied = sum(
            (model.checkpoint.path / copy).stat().st_size for p in planned for copy in p.copies
        )
        return Prediction(
            name=read.recipe.name,
            parameters=model.parameters,
            outputs=tuple(outputs),
            read_bytes=plan.read_bytes,
            write_bytes=sum(sizes),
            disk_bytes=sum(sizes) + copied,
            make_memory_bytes=working_memory_bytes(plan, DEFAULT_MEMORY_BYTES, cores),
            verify_memory_bytes=_REFERENCE_BYTES_PER_PARAMETER * model.parameters + max(sizes),
            threads=cores,
            seconds=_seconds(plan) / cores,
            duties=licence_of(read, model),
            remarks=() if exact else ("no tokenizer here: GGUF sizes lack the vocabulary",),
        )


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


def _seconds(plan: Plan) -> float:
    """Seconds of one thread for all encodings, from one timed block for each kernel."""
    rates: dict[tuple[str, str, bool], float] = {}
    total = 0.0
    for encoding in plan.encodings:
        tensor = encoding.tensor
        if not tensor.sources:
            continue
        key = (tensor.scheme.name, tensor.sources[0].tensor.dtype, tensor.importance is not None)
        if key not in rates:
            rates[key] = _rate(tensor)
        passes = 2 if tensor.scheme.needs_reduce else 1
        total += passes * math.prod(tensor.shape) / rates[key]
    return total


def _rate(tensor: OutputTensor) -> float:
    """Values a second that one thread encodes of a tensor like this."""
    columns, scheme = tensor.shape[-1], tensor.scheme
    step = scheme.block_rows
    rows = max(step, _SAMPLE_VALUES // columns // step * step)
    block = _random_block(tensor.sources[0].tensor.dtype, rows, columns)
    _encode(scheme, block, tensor)  # the first call checks and loads kernels
    begin = time.perf_counter()
    _encode(scheme, block, tensor)
    return rows * columns / max(time.perf_counter() - begin, 1e-9)


def _encode(scheme: Scheme, block: Block, tensor: OutputTensor) -> None:
    state = scheme.reduce(None, block) if scheme.needs_reduce else None
    scheme.encode(block, state, tensor.importance_at(0))


def _random_block(dtype: str, rows: int, columns: int) -> Block:
    values = np.random.default_rng(0).standard_normal((rows, columns), np.float32) * 0.02
    storage = DTYPES[dtype].storage
    if dtype == "BF16":
        raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        raw = values.astype(np.float16 if dtype == "F16" else np.float32)
    return Block("sample", dtype, 0, raw.view(storage))
