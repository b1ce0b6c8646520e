"""The peak memory of a run over one large tensor, against its budget.

    python -m benchmarks.memory [--rows N] [--columns N] [--memory SIZE] [--threads N] [--work DIR]

The default is the largest matrix of any published Hermes model, the 128256 x 16384 embedding of the
405B, in bf16: 4.2 GB, a sparse file (zeros cost the same memory as anything else). It goes into
Q6_K, FP8 with a scale for each row, and NVFP4, which reads it twice. Measured is RssAnon, what of a
process's memory is its own, sampled every 2 ms: what it was before the run is the interpreter's.
Exits with 1 if the run took more than its budget on top of that. The default shape's result is
written to RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import anonymous_bytes
from benchmarks.results import machine, write_section
from convert.checkpoint import Checkpoint
from convert.output_tensor import OutputTensor, Scheme, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile, plan_run
from convert.run import run
from convert.size import parse_size
from convert.tensor import TensorInfo
from quantize.fp4 import Nvfp4
from quantize.ggml import Ggml
from quantize.scaled import Scaled
from tests.miniature import Shape, write_checkpoint

SHARD = "large.safetensors"
LARGEST = 128_256, 16_384


@dataclass(frozen=True)
class Peak:
    """Bytes of RssAnon before a run and at most while it went on."""

    before: int
    highest: int

    @property
    def working(self) -> int:
        """What the run itself took."""
        return self.highest - self.before


def measure_run(folder: Path, rows: int, columns: int, memory_bytes: int, threads: int) -> Peak:
    """Quantize a matrix of zeros of this shape, made in `folder`, three ways at once."""
    source = write_checkpoint(folder / "source", shape=Shape(layers=1))
    with Checkpoint.open(source) as checkpoint:
        info = TensorInfo("large", "BF16", (rows, columns), SHARD, 0)
        with (source / SHARD).open("wb") as stream:
            stream.truncate(info.size_bytes)
        status = (source / SHARD).stat()
        checkpoint.shards = (SHARD,)
        checkpoint.stamps = {SHARD: (status.st_size, status.st_mtime_ns)}
        schemes = (Ggml("Q6_K"), Scaled("FP8", "BF16", "E4M3", "channel"), Nvfp4("NVFP4", "BF16"))
        plan = plan_run([_artifact(info, scheme) for scheme in schemes])
        highest, stop = [anonymous_bytes(os.getpid())], threading.Event()
        before = highest[0]

        def watch() -> None:
            while not stop.wait(0.002):
                highest[0] = max(highest[0], anonymous_bytes(os.getpid()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run(
                plan,
                checkpoint,
                folder / "out",
                source={},
                recipe={},
                tool="benchmark",
                threads=threads,
                memory_bytes=memory_bytes,
            )
        finally:
            stop.set()
            watcher.join()
        return Peak(before, highest[0])


def _artifact(info: TensorInfo, scheme: Scheme) -> PlannedArtifact:
    source = (Source(info, 0, info.rows),)
    tensor = OutputTensor(info.name, info.shape, info.dtype, scheme, source)
    offsets, end = [], 0
    for part in tensor.parts:
        offsets.append(end)
        end += part.size_bytes(tensor.rows)
    file = PlannedFile(scheme.name, b"", end, (PlacedTensor(tensor, tuple(offsets)),))
    return PlannedArtifact(scheme.name, scheme.name, (file,))


def main() -> None:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=LARGEST[0])
    parser.add_argument("--columns", type=int, default=LARGEST[1])
    parser.add_argument("--memory", type=parse_size, default=1 << 30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        begin = time.monotonic()
        shape = (options.rows, options.columns)
        peak = measure_run(Path(folder), *shape, options.memory, options.threads)
        seconds = time.monotonic() - begin
    text = (
        f"{options.rows} x {options.columns} bf16 ({2 * options.rows * options.columns:,} bytes) to"
        f" Q6_K, FP8 by channel and NVFP4 on {options.threads} threads in {seconds:.0f} s: RssAnon"
        f" {peak.before:,} bytes before, {peak.highest:,} at most, {peak.working:,} for the run;"
        f" budget {options.memory:,}.\n\n{machine('numpy')}."
    )
    print(text)
    if shape == LARGEST:
        write_section("Memory: the largest matrix of the 405B", text)
    sys.exit(peak.working > options.memory)


if __name__ == "__main__":
    main()
