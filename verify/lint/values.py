"""What only the values tell: NaN, infinities, scales that cannot be, matrices that are copies.

Every tensor that can hold such a value is read once, in runs of bounded size. In E4M3 the codes
0x7F and 0xFF are NaN and there is no infinity; in E5M2 exponent 31 is either; an E8M0 scale of
0xFF is NaN. Packed integers and FP4 hold neither and are not read.

Copies are found by their first run, then compared whole: matrices of the same dtype and shape only,
for vectors of ones are nothing unusual. Scales that were stored as inverses are told by their size:
a scale is absmax / 448 or so, far below 1 for any trained matrix, and its inverse far above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from convert.tensor import (
    DTYPES,
    SOURCE_DTYPES,
    Array,
    Float32,
    TensorInfo,
    finite_mask,
    to_float32,
)
from verify.layouts import CACHE_SCALES, SUFFIXES
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.stored_checkpoint import (
    StoredCheckpoint,
    chunks,
    read_items,
    weight_of,
)

OnBytes = Callable[[int, int, str], None]
_FIRST_BYTES = 1 << 20
_SINGLE_SCALES = ("F8_E4M3", "I8")
"""Weights that have one level of scales, which is then about absmax / 448 or absmax / 127."""


def lint_values(
    stored: StoredCheckpoint, on_progress: OnBytes | None = None
) -> Iterator[LintFinding]:
    """Read everything once and say what no weight or scale may be."""
    done = 0
    cache_scales: list[float] = []
    for info in stored.tensors.values():
        if on_progress is not None:
            on_progress(done, stored.size_bytes, info.name)
        yield from _lint_finite(stored, info)
        suffix = info.name.rpartition(".")[2]
        if suffix in ("weight_scale", "weight_scale_inv") and info.dtype in SOURCE_DTYPES:
            yield from _lint_scale(stored, info)
        if suffix in CACHE_SCALES and info.dtype in SOURCE_DTYPES:
            cache_scales += _floats(stored, info, 0, info.rows * info.columns).tolist()
        done += info.size_bytes
    if cache_scales and all(value == 1.0 for value in cache_scales):
        found = f"{len(cache_scales)} scales of 1.0"
        yield finding("kv-scales-all-one", "k_scale, v_scale", found, "calibrated scales")
    yield from _lint_copies(stored)


def _floats(stored: StoredCheckpoint, info: TensorInfo, start: int, stop: int) -> Float32:
    return to_float32(read_items(stored.path, info, start, stop), info.dtype)


def _finite(info: TensorInfo, items: Array) -> NDArray[np.bool_] | None:
    """True where a value is finite; None for dtypes that hold nothing else."""
    if info.dtype == "F8_E4M3":
        return np.asarray((items.view(np.uint8) & 0x7F) != 0x7F)
    if info.dtype == "F8_E5M2":
        return np.asarray((items.view(np.uint8) & 0x7C) != 0x7C)
    if info.dtype == "F8_E8M0" or (info.dtype == "U8" and info.name.endswith("weight_scale")):
        return np.asarray(items.view(np.uint8) != 0xFF)
    if info.dtype in (*SOURCE_DTYPES, "F64"):
        return finite_mask(items, info.dtype)
    return None


def _lint_finite(stored: StoredCheckpoint, info: TensorInfo) -> Iterator[LintFinding]:
    if _finite(info, np.empty(0, DTYPES[info.dtype].storage)) is None:
        return
    bad, first = 0, 0
    for start, stop in chunks(info):
        finite = _finite(info, read_items(stored.path, info, start, stop))
        if finite is not None and not finite.all():
            if not bad:
                first = start + int(np.argmin(finite))
            bad += int(finite.size - np.count_nonzero(finite))
    if bad:
        suffix = info.name.rpartition(".")[2]
        lint = "scale-not-finite" if suffix in SUFFIXES[1:] else "weight-not-finite"
        row, column = divmod(first, max(info.columns, 1))
        found = f"{bad:,} values, the first at row {row}, column {column}"
        yield finding(lint, info.name, found, "finite values")


def _lint_scale(stored: StoredCheckpoint, info: TensorInfo) -> Iterator[LintFinding]:
    """Sign and size of the scales of one matrix."""
    for start, stop in chunks(info):
        values = _floats(stored, info, start, stop)
        if (wrong := np.flatnonzero(values <= 0)).size:
            row = (start + int(wrong[0])) // max(info.columns, 1)
            found = f"{values[wrong[0]]:g} at row {row}, and {wrong.size - 1} more"
            yield finding("scale-not-positive", info.name, found, "a positive number")
            return
        weight = weight_of(stored.modules[info.name.rpartition(".")[0]])
        if start == 0 and weight is not None and weight.dtype in _SINGLE_SCALES:
            middle = float(np.median(values)) if np.isfinite(values).all() else 0.0
            if middle > 1:
                found = f"{middle:.4g} in the middle of its scales"
                yield finding("scale-inverse", info.name, found, "far below 1")


def _lint_copies(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Matrices of equal bytes; a tied head is meant to equal the embedding."""
    tied = stored.config.get("tie_word_embeddings") is True
    seen: dict[tuple[object, ...], TensorInfo] = {}
    for info in _matrices(stored):
        items = read_items(stored.path, info, 0, min(_FIRST_BYTES, info.rows * info.columns))
        key = (info.dtype, info.shape, hashlib.sha256(items.tobytes()).digest())
        first = seen.setdefault(key, info)
        if first is info or (tied and "lm_head" in (first.name + info.name)):
            continue
        if _same(stored, first, info):
            yield finding(
                "tensor-copied", info.name, f"equal to {first.name}", "weights of its own"
            )


def _matrices(stored: StoredCheckpoint) -> Iterator[TensorInfo]:
    for module in stored.modules.values():
        info = weight_of(module)
        if info is not None and len(info.shape) == 2 and info.size_bytes:
            yield info


def _same(stored: StoredCheckpoint, a: TensorInfo, b: TensorInfo) -> bool:
    return all(
        read_items(stored.path, a, start, stop).tobytes()
        == read_items(stored.path, b, start, stop).tobytes()
        for start, stop in chunks(a)
    )
