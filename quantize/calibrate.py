"""The verb `calibrate`: one pass over conversations, everything that quantizing can use of it.

The model is run layer by layer (`quantize/activations`), so memory holds one layer and the states
of all chunks. The states that leave a layer are kept in the output folder until the end: a run that
was stopped goes on with the next layer. Chunks go through `CHUNKS_AT_ONCE` at a time; how many does
not change what comes out by more than rounding.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import InputError, OutputError
from convert.families.rules import FUSED, LINEAR_ROLES, Tensor
from convert.job import tool_version
from convert.model import Model, open_model
from convert.staging import entries, flush, hash_file, staging_folder
from convert.workers import Steps
from quantize.calibration import (
    ACTIVATIONS,
    IMATRIX,
    RECORD,
    SCHEMA_VERSION,
    TOKENS,
    Calibration,
    model_digest,
    read_calibration,
)
from quantize.calibration_text import CHUNK_TOKENS, CalibrationText, read_calibration_text
from quantize.importance import encode_importance

if TYPE_CHECKING:
    from quantize.activations.statistics import Statistics

CHUNKS_AT_ONCE = 4
_PROGRESS = "progress.npz"


def calibrate(
    model: str,
    out: Path,
    data: Path | None = None,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    device: str = "cpu",
    dtype: str = "float32",
    force: bool = False,
    on_progress: Steps | None = None,
) -> Calibration:
    """Run `model` (folder or hub id) over the conversations in `data`; write the folder `out`.

    A complete calibration of the same model, text and dtype is kept as it is; anything else at
    `out` is replaced only with `force`.
    """
    with open_model(model) as opened:
        text = read_calibration_text(opened.checkpoint.path, data, chunk_tokens)
        record = _record(opened, text, dtype)
        key = _key(record, opened.checkpoint.fingerprint())
        if (kept := _already_there(out, key, force)) is not None:
            return kept
        with staging_folder(out) as staging:
            statistics = _run(opened, text, staging / _PROGRESS, key, device, dtype, on_progress)
            names = _write(staging, opened.tensors, text, statistics)
            digests = {name: hash_file(staging / name) for name in names}
            record |= {"key": key, "device": device, "files": digests}
            (staging / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            _publish(staging, out, names)
    return read_calibration(out)


def _record(model: Model, text: CalibrationText, dtype: str) -> dict[str, Any]:
    checkpoint = model.checkpoint
    digest = model_digest(checkpoint.spec.architecture, checkpoint.tensors)
    described = {k: v for k, v in asdict(text).items() if k != "chunks"}
    return {
        "schema_version": SCHEMA_VERSION,
        "model": {"digest": digest, **model.source()},
        "data": {**described, "chunks": len(text.chunks), "tokens": text.tokens},
        "dtype": dtype,
        "tool": tool_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _key(record: Mapping[str, Any], fingerprint: str) -> str:
    """What makes two runs the same."""
    return hashlib.sha256(json.dumps([record, fingerprint], sort_keys=True).encode()).hexdigest()


def _already_there(out: Path, key: str, force: bool) -> Calibration | None:
    if not (out / RECORD).exists():
        strange = [p.name for p in out.iterdir() if p.name[0] != "."] if out.is_dir() else []
        if strange and not force:
            raise OutputError(f"{out}: has files already ({strange[0]}); choose another --out")
        return None
    try:
        found: Calibration | None = read_calibration(out)
    except InputError:
        found = None
    if found is not None and found.record.get("key") == key:
        return found
    if not force:
        raise OutputError(
            f"{out}: holds a calibration of another model, text or setting; pass --force to"
            " replace it, or choose another --out"
        )
    return None


def _run(
    model: Model,
    text: CalibrationText,
    progress: Path,
    key: str,
    device: str,
    dtype: str,
    on_progress: Steps | None,
) -> Statistics:
    from quantize.activations import padded_batches, run_layers
    from quantize.activations.saved import Progress, saver
    from quantize.activations.statistics import Statistics

    leaders = {_leader(tensor): _module(tensor) for tensor in model.tensors if _is_leader(tensor)}
    statistics = Statistics(frozenset(leaders.values()))
    batches = padded_batches(text.chunks, CHUNKS_AT_ONCE)
    kept = Progress(progress, key)
    run_layers(
        model.checkpoint.path,
        batches,
        [statistics],
        device=device,
        dtype=dtype,
        start=kept.take_up(dtype, statistics),
        after_layer=saver(kept, statistics),
        on_progress=on_progress,
    )
    return statistics


def _is_matrix(tensor: Tensor) -> bool:
    return tensor.rule.role in LINEAR_ROLES and len(tensor.info.shape) == 2


def _is_leader(tensor: Tensor) -> bool:
    return _is_matrix(tensor) and FUSED.get(tensor.rule.role, tensor.rule.role) == tensor.rule.role


def _leader(tensor: Tensor) -> tuple[int | None, int | None, str]:
    """What matrices with one input have in common."""
    return tensor.layer, tensor.expert, FUSED.get(tensor.rule.role, tensor.rule.role)


def _module(tensor: Tensor) -> str:
    return tensor.info.name.removesuffix(".weight")


def _write(
    staging: Path, tensors: Sequence[Tensor], text: CalibrationText, statistics: Statistics
) -> tuple[str, ...]:
    """Write the files into the staging folder; their names."""
    matrices = [tensor for tensor in tensors if _is_matrix(tensor)]
    leaders = {_leader(tensor): _module(tensor) for tensor in matrices if _is_leader(tensor)}
    sums: dict[str, list[NDArray[np.float64]]] = {}
    counts: dict[str, list[int]] = {}
    inputs: dict[str, float] = {}
    for tensor in sorted(matrices, key=lambda t: (t.gguf_name or "", t.expert or 0)):
        name = tensor.gguf_name
        assert name is not None
        found = statistics.inputs.get(leaders[_leader(tensor)])
        columns = tensor.info.columns
        sums.setdefault(name, []).append(np.zeros(columns) if found is None else found.sum_squares)
        counts.setdefault(name, []).append(0 if found is None else found.tokens)
        inputs[_module(tensor)] = 0.0 if found is None else found.absmax
    imatrix = encode_importance(
        {name: np.stack(rows) for name, rows in sums.items()},
        {name: np.array(rows, dtype=np.float64) for name, rows in counts.items()},
        dataset=text.name,
        chunks=len(text.chunks),
        chunk_tokens=text.chunk_tokens,
    )
    (staging / IMATRIX).write_bytes(imatrix)
    layers = range(len(statistics.keys))
    maxima = {
        "inputs": dict(sorted(inputs.items())),
        "keys": [statistics.keys[layer] for layer in layers],
        "values": [statistics.values[layer] for layer in layers],
    }
    (staging / ACTIVATIONS).write_text(json.dumps(maxima, indent=1) + "\n")
    np.save(staging / TOKENS, np.array(text.chunks, dtype=np.int32))
    return IMATRIX, ACTIVATIONS, TOKENS


def _publish(staging: Path, out: Path, names: Sequence[str]) -> None:
    """Move the files into place, the record last: a folder with a record that fits is complete."""
    try:
        (out / RECORD).unlink(missing_ok=True)
        for name in (*names, RECORD):
            flush(staging / name)
            os.replace(staging / name, out / name)
            flush(out)
        for left in entries(staging):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to: {error.strerror}") from error
