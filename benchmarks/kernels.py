"""How fast are our kernels? One thread, every build of this machine, ggml in the same run.

    python -m benchmarks.kernels [--type Q4_K ...] [--rounds 9]

Rows of heavy-tailed weights. Ours start from bf16 bits, as a checkpoint stores them;
`ggml_quantize_chunk` is given float32 that was widened before the clock starts. FP8 is compared
with this project's own numpy path. The contestants alternate, the median round counts, and time
is the thread's own processor time, so that other work on the machine disturbs little. MB/s are of
bf16. The last table runs the widest build on one and two threads by the wall clock, half a second
of work at least, in turn; the median of the rounds' ratios counts.
All types together are written to RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.results import machine, markdown, write_section
from convert.tensor import Array, Block, Float32, to_float32
from quantize import kernels, scaled
from quantize.ggml import library_digest, quantize_chunk

ROWS, COLUMNS = 64, 4096
GGML_ROWS = 16
"""ggml is slower and its speed does not depend on the number of rows: it gets fewer."""
THREADED_SECONDS = 0.5
"""Long enough that starting and waking threads does not count."""
Rates = dict[str, float]


def weights() -> tuple[Array, Float32, Float32]:
    """bf16 bits, the same values as float32, and an importance."""
    random = np.random.default_rng(0)
    values = (random.standard_t(4, (ROWS, COLUMNS)) * 0.02).astype(np.float32)
    raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    return raw, to_float32(raw, "BF16"), random.chisquare(1, COLUMNS).astype(np.float32)


def measure(contestants: dict[str, tuple[Callable[[], object], int]], rounds: int) -> Rates:
    """MB/s of bf16 by contestant, each given as a call and how many values it takes."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (call, _) in contestants.items():
            started = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - started)
    return {
        name: 2e-6 * size / statistics.median(seconds[name])
        for name, (_, size) in contestants.items()
    }


def measure_type(name: str, *, weighted: bool, rounds: int) -> Rates:
    """ggml and every build on one type."""
    raw, wide, importance = weights()
    given = importance if weighted else None
    ggml = quantize_chunk, (name, wide[:GGML_ROWS], given)
    contestants = {"peer": (lambda: ggml[0](*ggml[1]), GGML_ROWS * COLUMNS)}
    for build in kernels.BUILDS:
        arguments = build, raw, "BF16", name, given
        contestants[build] = (lambda a=arguments: kernels.quantize(*a), raw.size)  # type: ignore[misc]
    return measure(contestants, rounds)


def measure_fp8(rounds: int) -> Rates:
    """numpy and every build, scales and codes together."""
    raw, _, _ = weights()
    absmax = scaled.absmax_by_numpy(Block("w", "BF16", 0, raw))
    scales = to_float32(scaled.scales_of(absmax, 448.0, "BF16"), "BF16")

    def by_numpy() -> None:
        block = Block("w", "BF16", 0, raw)
        scaled.absmax_by_numpy(block)
        scaled.codes_by_numpy(block, scales, "E4M3", "BF16")

    def by(build: str) -> None:
        block = Block("w", "BF16", 0, raw)
        kernels.measure_absmax(build, block)
        kernels.encode_codes(build, block, scales, "E4M3", "BF16")

    contestants: dict[str, tuple[Callable[[], object], int]] = {"peer": (by_numpy, raw.size)}
    for build in kernels.BUILDS:
        contestants[build] = (lambda b=build: by(b), raw.size)  # type: ignore[misc]
    return measure(contestants, rounds)


def measure_threads(name: str, rounds: int) -> tuple[float, float, float]:
    """MB/s by the wall clock on one and on two threads, the same blocks of rows; the ratio."""
    raw, _, _ = weights()

    def encode(_: int) -> None:
        kernels.quantize(kernels.BUILDS[0], raw, "BF16", name, None)

    def rate(pool: ThreadPoolExecutor, blocks: int) -> float:
        started = time.perf_counter()
        deque(pool.map(encode, range(blocks)), maxlen=0)
        return 2e-6 * raw.size * blocks / (time.perf_counter() - started)

    with ThreadPoolExecutor(1) as single, ThreadPoolExecutor(2) as double:
        blocks = 2 + int(THREADED_SECONDS * rate(single, 16) / (2e-6 * raw.size))
        pairs = [(rate(single, blocks), rate(double, blocks)) for _ in range(rounds)]
    one, two = map(statistics.median, zip(*pairs, strict=True))
    return one, two, statistics.median(two / one for one, two in pairs)


def report(types: list[str], rounds: int) -> str:
    """Both tables, as markdown."""
    rows = []
    for name in types:
        for weighted in (False, True):
            rates = measure_type(name, weighted=weighted, rounds=rounds)
            rows.append([name, "yes" if weighted else "", *_cells(rates)])
    rows.append(["FP8 E4M3", "", *_cells(measure_fp8(rounds))])
    head = ["type", "importance", "peer MB/s", *(f"{build} MB/s" for build in kernels.BUILDS)]
    threads = []
    for name in types:
        one, two, ratio = measure_threads(name, rounds)
        threads.append([name, f"{one:.0f}", f"{two:.0f}", f"{ratio:.2f}"])
    return "\n\n".join(
        [
            markdown(head, rows),
            markdown(["type", "1 thread MB/s", "2 threads MB/s", "ratio"], threads),
            "The first table is one thread, MB/s of bf16, against `ggml_quantize_chunk` (sha256"
            f" {library_digest()[:16]}), for FP8 against numpy."
            f" {machine('llama-cpp-python', 'numpy')}.",
        ]
    )


def main() -> None:
    """Print the tables; with every type they also go into RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--type", action="append", choices=kernels.TYPES)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    text = report(options.type or list(kernels.TYPES), options.rounds)
    print(text)
    if not options.type:
        write_section("Kernels, one thread", text)


def _cells(rates: Rates) -> list[str]:
    peer = rates["peer"]
    ours = [f"{rates[b]:.0f} ({rates[b] / peer:.1f}x)" for b in kernels.BUILDS]
    return [f"{peer:.1f}", *ours]


if __name__ == "__main__":
    main()
