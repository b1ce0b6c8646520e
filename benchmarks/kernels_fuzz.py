"""Do our kernels make ggml's bytes? Hard rows, every type, every build of this machine.

    python -m benchmarks.kernels_fuzz [--values 1e8] [--type Q4_K ...] [--seed 0]

Blocks of rows (`tests/hard_rows.py`) in every dtype, with and without importance, go through each
build and through `ggml_quantize_chunk`, until each type has seen that many values; codes are
compared with numpy's. Types run in parallel on all cores. Exits with 1 if a byte differs, and
prints the seeds that show it. With all types the result is written to RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.results import machine, write_section
from convert.tensor import SOURCE_DTYPES, Block, to_float32
from quantize import kernels, scaled
from quantize.codes import FORMATS
from quantize.ggml import library_digest, quantize_chunk
from tests.hard_rows import hard_importance, hard_rows, stored_as

PER_TASK = 2_000_000
"""Values of one task: one type, one seed."""


def differing_blocks(name: str, seed: int) -> list[str]:
    """What differs for one type on about PER_TASK values; empty if nothing does."""
    random, seen, found = np.random.default_rng(seed), 0, []
    while seen < PER_TASK:
        rows, columns = int(random.integers(1, 80)), 256 * int(random.integers(1, 9))
        dtype = str(random.choice(SOURCE_DTYPES))
        raw, wide = stored_as(hard_rows(random, rows, columns), dtype)
        importance = hard_importance(random, columns) if random.random() < 0.5 else None
        seen += wide.size
        if name in scaled.KERNEL_CODES:
            wrong = _differing_codes(Block("w", dtype, 0, raw), name)
        else:
            theirs = quantize_chunk(name, wide, importance)
            wrong = [
                build
                for build in kernels.BUILDS
                if not np.array_equal(kernels.quantize(build, raw, dtype, name, importance), theirs)
            ]
        weighted = "with" if importance is not None else "without"
        found += [f"{name} {build} {dtype} {weighted} importance, seed {seed}" for build in wrong]
    return found


def _differing_codes(block: Block, code: str) -> list[str]:
    """Builds whose codes or largest magnitudes are not those of the numpy path."""
    absmax = scaled.absmax_by_numpy(block)
    wrong = [
        b for b in kernels.BUILDS if not np.array_equal(kernels.measure_absmax(b, block), absmax)
    ]
    half_range = FORMATS[code].half_range
    scales = to_float32(scaled.scales_of(absmax, half_range, block.dtype), block.dtype)
    for rounded in sorted({block.dtype, "F32"}):
        with np.errstate(all="ignore"):
            codes = scaled.codes_by_numpy(block, scales, code, rounded)
        wrong += [
            f"{b} rounded to {rounded}"
            for b in kernels.BUILDS
            if not np.array_equal(kernels.encode_codes(b, block, scales, code, rounded), codes)
        ]
    return wrong


def main() -> int:
    """Run all tasks and print one line a type."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--values", type=float, default=1e8, help="at least, for each type")
    parser.add_argument("--type", action="append", choices=[*kernels.TYPES, *scaled.KERNEL_CODES])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not kernels.BUILDS:
        print("the kernels were not built on this machine: nothing to compare", file=sys.stderr)
        return 1
    types = options.type or [*kernels.TYPES, *scaled.KERNEL_CODES]
    trials = -(-int(options.values) // PER_TASK)
    tasks = [(name, options.seed + trial) for trial in range(trials) for name in types]
    wrong = list(_run(tasks))
    console = Console()
    for line in wrong:
        console.print(f"differs: {line}")
    text = (
        f"{', '.join(types)}: {trials * PER_TASK:,} values or more each, builds"
        f" {', '.join(kernels.BUILDS)}: {len(wrong)} blocks of rows differ from libggml-base"
        f" (sha256 {library_digest()[:16]}) and numpy.\n\n{machine('llama-cpp-python', 'numpy')}."
    )
    console.print(text)
    if not options.type:
        write_section("Kernels against ggml, byte for byte", text)
    return 1 if wrong else 0


def _run(tasks: list[tuple[str, int]]) -> Iterator[str]:
    with ProcessPoolExecutor() as pool:
        results = pool.map(differing_blocks, *zip(*tasks, strict=True))
        for found in track(results, total=len(tasks), console=Console(stderr=True)):
            yield from found


if __name__ == "__main__":
    sys.exit(main())
