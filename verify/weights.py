"""Weights: is every FP8 weight as near to the source's as rounding can have left it?

In: the 16- or 32-bit reference and an FP8 folder made from it, read together in row blocks. Out: an
Outcome that names the worst tensors and rows. No model is run. An element w, stored as the code q
under the scale s of its row, block or tensor, must satisfy

    |w - q*s| <= max(|w| * (2^-4 + 2^-8), s * 2^-10 * (1 + 2^-5))

widened where an F16 scale is subnormal; `rounding.py` derives it. The bound holds for each numerics
profile and every granularity; the scale of another row, a swapped, transposed or stale tensor, an
inverse scale break it by far. Tensors that were not quantized must be the source's to the bit.
Matrices in other formats than E4M3 are counted and not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from convert.blocks import row_blocks
from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.model_spec import read_json_object
from convert.tensor import DTYPES, SOURCE_DTYPES, TensorInfo
from verify.artifact import Artifact, Kind
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite
from verify.evidence import Evidence
from verify.quantization import read_quantization
from verify.rounding import Float64, Scales, read_scales, rounding_ratios

NAME = "weights"
BLOCK_VALUES = 1 << 18
"""Values of one row block; a thread holds about a dozen float64 arrays of that size."""
_FINDINGS = 10
Look = Callable[[int, int], Float64]
"""Error over bound of the rows from one number up to another."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """How one tensor differs from the source: elements out of bounds and the worst row.

    `ratio` is the error over the bound; for a tensor that is no FP8 matrix it is infinite as soon
    as one bit differs.
    """

    name: str
    elements: int
    out_of_bounds: int
    rows: int
    worst_row: int
    ratio: float


def is_fp8(artifact: Artifact) -> bool:
    """Whether the check has anything to look at: a folder with an E4M3 weight."""
    if artifact.kind is not Kind.COMPRESSED:
        return False
    try:
        with Checkpoint.open(artifact.path) as folder:
            return any(_is_code(info) for info in folder.tensors.values())
    except InputError:
        return False


def check_weights(evidence: Evidence, /) -> Outcome:
    """Hold every weight of an FP8 folder against the source's."""
    source = evidence.reference.checkpoint
    with Checkpoint.open(evidence.artifact.path) as stored:
        deviations = list(measure_weights(source, stored))
    wrong = sorted((d for d in deviations if d.out_of_bounds), key=lambda d: -d.ratio)
    codes = [d for d in deviations if _is_code(stored.tensors[d.name])]
    worst = max((d.ratio for d in codes), default=0.0)
    numbers: dict[str, Number] = {
        "matrices": len(codes),
        "copies": len(deviations) - len(codes),
        "not_looked_at": len(source.tensors) - len(deviations),
        "values": sum(d.elements for d in deviations),
        "out_of_bounds": sum(d.out_of_bounds for d in wrong),
        "worst_ratio": finite(worst),
    }
    points = tuple(Point(d.name, {"ratio": finite(d.ratio)}) for d in codes)
    if wrong:
        reason = f"{len(wrong)} tensors are not what rounding makes of the source"
        findings = tuple(Finding(d.name, _message(d)) for d in wrong[:_FINDINGS])
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), findings, points)
    if not codes:
        return Outcome(NAME, Verdict(State.NOT_ENOUGH_EVIDENCE, "no FP8 matrix", numbers))
    reason = f"all {numbers['values']:,} values are within their rounding of the source"
    if numbers["not_looked_at"]:
        reason += f"; {numbers['not_looked_at']} tensors are in other formats"
    return Outcome(NAME, Verdict(State.PASS, reason, numbers), points=points)


def _message(deviation: Deviation) -> str:
    share = 100 * deviation.out_of_bounds / deviation.elements
    by = "" if np.isinf(deviation.ratio) else f" by a factor of {deviation.ratio:.3g}"
    return (
        f"{deviation.out_of_bounds:,} values ({share:.3g} %) in {deviation.rows:,} rows are out of"
        f" bounds, row {deviation.worst_row} worst{by}"
    )


def _is_code(info: TensorInfo) -> bool:
    return info.dtype == "F8_E4M3" and info.name.endswith(".weight")


def measure_weights(
    source: Checkpoint, stored: Checkpoint, threads: int | None = None
) -> Iterator[Deviation]:
    """The deviation of every tensor that both have in one shape, in the order of the source."""
    quantization = read_quantization(read_json_object(stored.path / "config.json"))
    source.open_shards()
    stored.open_shards()
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for name, info in source.tensors.items():
            found = stored.tensors.get(name)
            if found is None or found.shape != info.shape or info.dtype not in SOURCE_DTYPES:
                continue
            scale = stored.tensors.get(f"{name}_scale")
            if _is_code(found) and scale is not None and scale.dtype in SOURCE_DTYPES:
                group = (
                    quantization.group_of(name.removesuffix(".weight")) if quantization else None
                )
                block = group.block if group else (128, 128)
                scales = read_scales(stored, scale, info, block)
                look: Look = partial(_ratios, source, stored, info, found, scales)
            elif found.dtype == info.dtype:
                look = partial(_differs, source, stored, info, found)
            else:
                continue
            blocks = row_blocks(info, info.rows, 1, BLOCK_VALUES)
            parts = pool.map(lambda rows, look=look: _measure(look, *rows), blocks)
            yield _sum_up(info, list(parts))


@dataclass(frozen=True, slots=True)
class _Part:
    """What one row block has to say."""

    out_of_bounds: int
    rows: int
    worst_row: int
    ratio: float


def _measure(look: Look, start: int, stop: int) -> _Part:
    """Only these four numbers leave a thread; the arrays of a block live as long as it."""
    ratios = look(start, stop)
    wrong, by_row = ratios > 1, ratios.max(axis=1, initial=0.0)
    worst = int(by_row.argmax())
    rows = int(np.count_nonzero(wrong.any(axis=1)))
    return _Part(int(np.count_nonzero(wrong)), rows, start + worst, float(by_row[worst]))


def _sum_up(info: TensorInfo, parts: Sequence[_Part]) -> Deviation:
    worst = max(parts, key=lambda part: part.ratio, default=_Part(0, 0, 0, 0.0))
    return Deviation(
        name=info.name,
        elements=info.rows * info.columns,
        out_of_bounds=sum(part.out_of_bounds for part in parts),
        rows=sum(part.rows for part in parts),
        worst_row=worst.worst_row,
        ratio=worst.ratio,
    )


def _ratios(
    source: Checkpoint,
    stored: Checkpoint,
    info: TensorInfo,
    found: TensorInfo,
    scales: Scales,
    start: int,
    stop: int,
) -> Float64:
    w = source.read_rows(info, start, stop).float32().astype(np.float64)
    codes = stored.read_rows(found, start, stop).raw.view(np.uint8)
    return rounding_ratios(w, codes, scales.rows(start, stop), scales.dtype)


def _differs(
    source: Checkpoint,
    stored: Checkpoint,
    info: TensorInfo,
    found: TensorInfo,
    start: int,
    stop: int,
) -> Float64:
    """Infinity where a bit differs, else 0."""
    bits = f"u{DTYPES[info.dtype].itemsize}"
    ours = source.read_rows(info, start, stop).raw.view(bits)
    theirs = stored.read_rows(found, start, stop).raw.view(bits)
    return np.where(ours == theirs, 0.0, np.inf)
