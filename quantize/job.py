"""The verb `quantize`: any number of targets from one read of the checkpoint.

Targets are the registry below: the 16- and 32-bit forms of `convert`, llama.cpp's mixtures, and the
compressed-tensors schemes for vLLM. A new target is one planner and one line. Two kinds are not in
the registry because the user names them: a mixture in a YAML file, and the best of a given size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from convert import checkpoint_copy, job
from convert.errors import InputError
from convert.job import Job, Planner
from convert.memory import DEFAULT_MEMORY_BYTES
from convert.model import Model
from convert.plan import PlannedArtifact
from convert.workers import Progress
from quantize.abliteration.edit_folder import read_edit
from quantize.choice import NO_OVERRIDES, Overrides
from quantize.compressed_tensors import TARGETS, plan_compressed
from quantize.gguf_targets import Options, plan_mixture, plan_own_mixture, plan_size_target
from quantize.importance import read_importance
from quantize.mixture_table import MIXTURES
from quantize.own_mixture import SUFFIXES, read_own_mixture
from quantize.scaled import NUMERICS
from quantize.size_target import SizeTarget


def plan_folder(model: Model, target: str, numerics: str) -> PlannedArtifact:
    """Plan the compressed-tensors folder `<name>-<target>`."""
    folder = f"{model.name}-{target}"
    return plan_compressed(folder, target, model.checkpoint, model.tensors, numerics)


def planners(options: Options, numerics: str = NUMERICS[0]) -> dict[str, Planner]:
    """Every target by name."""
    return {
        **dict.fromkeys(TARGETS, partial(plan_folder, numerics=numerics)),
        **dict.fromkeys(MIXTURES, partial(plan_mixture, options=options)),
        **job.planners(options.max_file_bytes),
        checkpoint_copy.TARGET: checkpoint_copy.plan_copy,
    }


def quantize(
    model: str,
    out: Path,
    targets: Sequence[str] = (),
    *,
    fit_bytes: int | None = None,
    bits_per_weight: float | None = None,
    imatrix: Path | None = None,
    abliterate: Path | None = None,
    overrides: Overrides = NO_OVERRIDES,
    max_file_bytes: int | None = None,
    numerics: str = NUMERICS[0],
    name: str | None = None,
    metadata: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Job:
    """Make every target of `model` (folder or hub id) in the folder `out`, in one read.

    A target is a name in the registry or the path of a YAML file with one's own mixture.
    `fit_bytes` and `bits_per_weight` each ask for one more: the best mixture that fits.
    `abliterate` is an EDIT folder: its edits are made before any target is encoded.
    `numerics` is the profile of the compressed-tensors schemes (`scaled.py`).
    """
    if numerics not in NUMERICS:
        raise InputError(f"unknown numerics {numerics!r}; --numerics takes {', '.join(NUMERICS)}")
    importance = read_importance(imatrix) if imatrix else None
    options = Options(importance, overrides, max_file_bytes)
    known, wanted = planners(options, numerics), []
    for target in targets:
        if target.endswith(SUFFIXES):
            mixture = read_own_mixture(Path(target))
            if mixture.name in wanted:
                raise InputError(f"{target}: another target is called {mixture.name} too")
            known[mixture.name] = partial(plan_own_mixture, options=options, mixture=mixture)
            target = mixture.name
        wanted.append(target)
    sizes = (SizeTarget(size_bytes=fit_bytes), SizeTarget(bits_per_weight=bits_per_weight))
    for size, given in zip(sizes, (fit_bytes, bits_per_weight), strict=True):
        if given is not None:
            fitted = partial(plan_size_target, options=options, size=size, on_progress=on_progress)
            known[size.name] = fitted
            wanted.append(size.name)
    return job.make(
        model,
        out,
        wanted,
        known,
        name=name,
        metadata=metadata,
        recipe=options.recipe() | ({} if numerics == NUMERICS[0] else {"numerics": numerics}),
        force=force,
        dry_run=dry_run,
        memory_bytes=memory_bytes,
        threads=threads,
        on_progress=on_progress,
        edits=read_edit(abliterate).edits_of if abliterate else None,
    )
