"""The verb `quantize`: any number of targets from one read of the checkpoint.

Targets are the registry below: the 16- and 32-bit forms of `convert`, llama.cpp's mixtures, and the
compressed-tensors schemes for vLLM. A new target is one planner and one line. Two kinds are not in
the registry because the user names them: a mixture in a YAML file, and the best of a given size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from convert import checkpoint_copy, job
from convert.errors import InputError
from convert.job import Job, Planner
from convert.memory import DEFAULT_MEMORY_BYTES
from convert.model import Model
from convert.place import Place
from convert.plan import PlannedArtifact
from convert.workers import Progress
from quantize import kernels
from quantize.abliteration.edit_folder import read_edit
from quantize.calibrate import calibrate
from quantize.calibration import Calibration, check_model, read_calibration
from quantize.choice import NO_OVERRIDES, Overrides
from quantize.compressed_table import CALIBRATED, KNOWN, ONESHOT
from quantize.compressed_tensors import plan_compressed
from quantize.gguf_targets import Options, plan_mixture, plan_own_mixture, plan_size_target
from quantize.importance import read_importance
from quantize.mixture_table import MIXTURES
from quantize.oneshot_folders import OneshotFolders
from quantize.own_mixture import SUFFIXES, OwnMixture, read_own_mixture
from quantize.scaled import NUMERICS
from quantize.size_target import SizeTarget
from quantize.static_scales import StaticScales

JSONL = ".jsonl"


def plan_folder(
    model: Model,
    target: str,
    numerics: str,
    calibration: Calibration | None = None,
    kv_cache: bool = False,
) -> PlannedArtifact:
    """Plan the compressed-tensors folder `<name>-<target>`, with the scales of a calibration."""
    if (target in CALIBRATED or kv_cache) and calibration is None:
        what = "--kv-cache-fp8" if kv_cache else target
        raise InputError(
            f"{what} needs what is known of activations: pass --calibration with a folder that"
            " `hermes-quant calibrate` made, or with a file of conversations"
        )
    if calibration is not None:
        check_model(calibration, model.checkpoint)
    scales = StaticScales(calibration, inputs=target in CALIBRATED, kv_cache=kv_cache)
    folder = f"{model.name}-{target}"
    return plan_compressed(folder, target, model.checkpoint, model.tensors, numerics, scales)


def planners(
    options: Options,
    numerics: str = NUMERICS[0],
    calibration: Calibration | None = None,
    kv_cache: bool = False,
    oneshot: OneshotFolders | None = None,
) -> dict[str, Planner]:
    """Every target by name; `oneshot` has the text of one that llm-compressor computes."""
    folder = partial(plan_folder, numerics=numerics, calibration=calibration, kv_cache=kv_cache)
    oneshot = oneshot or OneshotFolders(calibration, kv_cache=kv_cache)
    return {
        **dict.fromkeys(KNOWN, folder),
        **dict.fromkeys(ONESHOT, oneshot.plan),
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
    calibration: Path | None = None,
    kv_cache: bool = False,
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
    `calibration` is a folder that `calibrate` made, or a file of conversations, which is calibrated
    with into `out/calibration` first; it gives the imatrix unless `imatrix` does, the input scales
    of FP8, the text of the schemes that llm-compressor computes, and with `kv_cache` the scales of
    an FP8 KV cache in every folder for vLLM.
    `numerics` is the profile of the compressed-tensors schemes (`scaled.py`).
    """
    if numerics not in NUMERICS:
        raise InputError(f"unknown numerics {numerics!r}; --numerics takes {', '.join(NUMERICS)}")
    kernels.build()  # what it has to say comes first
    by_oneshot = [target for target in targets if target in ONESHOT]
    if by_oneshot and numerics != NUMERICS[0]:
        raise InputError(
            f"--numerics {numerics} is not for {by_oneshot[0]}, which llm-compressor computes; make"
            " it in a command of its own"
        )
    only_text = len(by_oneshot) == len(targets) > 0 and not (fit_bytes or bits_per_weight)
    data = calibration if calibration and calibration.suffix == JSONL else None
    if kv_cache and not KNOWN.keys() & set(targets):
        raise InputError(f"--kv-cache-fp8 is for folders for vLLM; --to none of {', '.join(KNOWN)}")
    wanted, own = _names(targets)
    sizes = {size.name: size for size in _sizes(fit_bytes, bits_per_weight)}
    wanted += sizes
    edits = read_edit(abliterate).edits_of if abliterate else None
    folders = {*KNOWN, *ONESHOT, checkpoint_copy.TARGET}
    place = Place(out, folders, split=max_file_bytes is not None, force=force)
    if data is not None and only_text and not kv_cache:
        found = None  # only its text is wanted, and no pass over it
    else:
        if data is not None and not dry_run:
            names = [*planners(Options()), *own, *sizes]
            job.look_ahead(model, place, wanted, names, name=name, metadata=metadata, edits=edits)
        found = _calibration(model, calibration, out, dry_run=dry_run, force=force)
    weights = imatrix or (found.imatrix if found else None)
    importance = read_importance(weights) if weights else None
    options = Options(importance, overrides, max_file_bytes)
    oneshot = OneshotFolders(found, data, kv_cache=kv_cache)
    by_size = partial(plan_size_target, options=options, threads=threads, on_progress=on_progress)
    known: dict[str, Planner] = {
        **planners(options, numerics, found, kv_cache, oneshot),
        **{n: partial(plan_own_mixture, options=options, mixture=m) for n, m in own.items()},
        **{n: partial(by_size, size=size) for n, size in sizes.items()},
    }
    return job.make(
        model,
        place,
        wanted,
        known,
        name=name,
        metadata=metadata,
        recipe=options.recipe() | _recipe(numerics, found, kv_cache),
        dry_run=dry_run,
        memory_bytes=memory_bytes,
        threads=threads,
        on_progress=on_progress,
        edits=edits,
        elsewhere=dict.fromkeys(ONESHOT, oneshot.fill),
    )


def _names(targets: Sequence[str]) -> tuple[list[str], dict[str, OwnMixture]]:
    """What the targets are called, and those of them that are mixtures in files."""
    wanted: list[str] = []
    own: dict[str, OwnMixture] = {}
    for target in targets:
        if target.endswith(SUFFIXES):
            mixture = read_own_mixture(Path(target))
            if mixture.name in wanted:
                raise InputError(f"{target}: another target is called {mixture.name} too")
            own[mixture.name] = mixture
            target = mixture.name
        wanted.append(target)
    return wanted, own


def _sizes(fit_bytes: int | None, bits_per_weight: float | None) -> Iterator[SizeTarget]:
    if fit_bytes is not None:
        yield SizeTarget(size_bytes=fit_bytes)
    if bits_per_weight is not None:
        yield SizeTarget(bits_per_weight=bits_per_weight)


def _calibration(
    model: str, given: Path | None, out: Path, *, dry_run: bool, force: bool
) -> Calibration | None:
    """The calibration that was asked for; made first where conversations were given."""
    if given is None:
        return None
    if given.suffix != JSONL:
        return read_calibration(given)
    if dry_run:
        raise InputError(f"{given}: a dry run calibrates nothing; pass a calibration's folder")
    return calibrate(model, out / "calibration", given, force=force)


def _recipe(numerics: str, calibration: Calibration | None, kv_cache: bool) -> dict[str, Any]:
    """What the sidecar says beyond the options of the GGUF types."""
    found: dict[str, Any] = {} if numerics == NUMERICS[0] else {"numerics": numerics}
    if calibration is not None:
        found["calibration_sha256"] = calibration.sha256
    if kv_cache:
        found["kv_cache"] = "fp8"
    return found
