"""How fast are our kernels? One thread, every build of this machine, ggml in the same run.

    python -m benchmarks.kernels [--type Q4_K ...] [--rounds 9] [--work DIR]

Rows of heavy-tailed weights. Ours start from bf16 bits, as a checkpoint stores them;
`ggml_quantize_chunk` is given float32 that was widened before the clock starts, in the library as
it is shipped and in one that is compiled under DIR with `-march=native`. Codes have no peer of
their own and are compared with this project's numpy path. The contestants alternate, the median
round counts, and time is the thread's own processor time, so that other work on the machine
disturbs little. MB/s are of
bf16. The last table runs the widest build on one and two threads by the wall clock, half a second
of work at least, in turn; the median of the rounds' ratios counts.
All types together are written to RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import llama_cpp_source
from benchmarks.results import machine, markdown, write_section
from convert.tensor import Array, Block, Float32, to_float32
from quantize import kernels, scaled
from quantize.codes import FORMATS
from quantize.ggml import library_digest, quantize_chunk

ROWS, COLUMNS = 64, 4096
GGML_ROWS = 16
"""ggml is slower and its speed does not depend on the number of rows: it gets fewer."""
THREADED_SECONDS = 0.5
"""Long enough that starting and waking threads does not count."""
BARS = {
    "avx512": {"Q4_K": 7.0, "Q5_K": 7.0, "Q6_K": 5.0},
    "avx2": {"Q4_K": 5.0, "Q5_K": 5.0, "Q6_K": 3.5},
}
"""How many times faster than ggml as shipped a build is to be; with importance, WEIGHTED_BAR."""
WEIGHTED_BAR = 4.0
THREADS_BAR = 1.8
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


def measure_type(name: str, native: Path, *, weighted: bool, rounds: int) -> Rates:
    """ggml as shipped, ggml for this processor, and every build of ours on one type."""
    raw, wide, importance = weights()
    given = importance if weighted else None

    def peer(library: Path | None) -> None:
        quantize_chunk(name, wide[:GGML_ROWS], given, library)

    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "shipped": (partial(peer, None), GGML_ROWS * COLUMNS),
        "native": (partial(peer, native), GGML_ROWS * COLUMNS),
    }
    for build in kernels.BUILDS:
        call = partial(kernels.quantize, build, raw, "BF16", name, given)
        contestants[build] = (call, raw.size)
    return measure(contestants, rounds)


def measure_codes(code: str, rounds: int) -> Rates:
    """numpy and every build, scales and codes together."""
    raw, _, _ = weights()
    absmax = scaled.absmax_by_numpy(Block("w", "BF16", 0, raw))
    scales = to_float32(scaled.scales_of(absmax, FORMATS[code].half_range, "BF16"), "BF16")

    def by_numpy() -> None:
        block = Block("w", "BF16", 0, raw)
        scaled.absmax_by_numpy(block)
        scaled.codes_by_numpy(block, scales, code, "BF16")

    def by(build: str) -> None:
        block = Block("w", "BF16", 0, raw)
        kernels.measure_absmax(build, block)
        kernels.encode_codes(build, block, scales, code, "BF16")

    contestants: dict[str, tuple[Callable[[], object], int]] = {"numpy": (by_numpy, raw.size)}
    contestants |= {build: (partial(by, build), raw.size) for build in kernels.BUILDS}
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


def report(types: list[str], native: Path, rounds: int) -> str:
    """The tables, as markdown."""
    bars = BARS.get(kernels.BUILDS[0], {})
    rows: list[list[str]] = []
    for name in types:
        for weighted in (False, True):
            rates = measure_type(name, native, weighted=weighted, rounds=rounds)
            bar = f"{WEIGHTED_BAR if weighted else bars[name]:g}x" if name in bars else ""
            peers = [f"{rates[peer]:.1f}" for peer in ("shipped", "native")]
            against = rates[kernels.BUILDS[0]] / rates["native"]
            cells = [
                *peers,
                *_cells(rates, "shipped"),
                f"{against:.1f}x",
                bar,
            ]
            rows.append([name, "yes" if weighted else "", *cells])
    builds = [f"{build} MB/s" for build in kernels.BUILDS]
    head = ["type", "importance", "ggml MB/s", "native MB/s", *builds]
    head += [f"{kernels.BUILDS[0]} to native", "bar"]
    codes = []
    for code in scaled.KERNEL_CODES:
        rates = measure_codes(code, rounds)
        codes.append([code, f"{rates['numpy']:.1f}", *_cells(rates, "numpy")])
    threads = []
    for name in types:
        one, two, ratio = measure_threads(name, rounds)
        bar = f"{THREADS_BAR}" if name.endswith("_K") else ""
        threads.append([name, f"{one:.0f}", f"{two:.0f}", f"{ratio:.2f}", bar])
    return "\n\n".join(
        [
            markdown(head, rows),
            "One thread, MB/s of bf16, against `ggml_quantize_chunk` of the installed library"
            f" (sha256 {library_digest()[:16]}); native: the same source with `-march=native`.",
            markdown(["scales and codes", "numpy MB/s", *builds], codes),
            markdown(["type", "1 thread MB/s", "2 threads MB/s", "ratio", "bar"], threads),
            f"Medians of {rounds}; {machine('llama-cpp-python', 'numpy')}.",
        ]
    )


def main() -> None:
    """Print the tables; with every type they also go into RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--type", action="append", choices=kernels.TYPES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--work", type=Path, help="where llama.cpp's source and library go")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = (options.work or Path(scratch)).resolve()
        source = llama_cpp_source.fetch_source(work)
        built = llama_cpp_source.build_tools(source, work, ("ggml-base",), native=True)
        native = built / llama_cpp_source.PRODUCTS["ggml-base"]
        text = report(options.type or list(kernels.TYPES), native, options.rounds)
    print(text)
    if not options.type:
        write_section("Kernels, one thread", text)


def _cells(rates: Rates, peer: str) -> list[str]:
    return [f"{rates[b]:.0f} ({rates[b] / rates[peer]:.1f}x)" for b in kernels.BUILDS]


if __name__ == "__main__":
    main()
