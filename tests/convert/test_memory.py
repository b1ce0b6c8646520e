"""A run's memory is bounded by its budget, whatever the tensor; the bound per value is measured."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.memory import WORKING_BYTES_PER_VALUE, Memory
from convert.output_tensor import HeadInterleave, Scheme
from convert.plan import plan_run
from convert.tensor import Block, TensorInfo, round_to
from convert.workers import cores
from quantize.fp4 import Mxfp4, Nvfp4
from quantize.ggml import Ggml
from quantize.scaled import Scaled
from tests.convert.plans import make, one_file, tensor
from tests.miniature import Shape, write_checkpoint

ROOT = Path(__file__).parents[2]


def schemes(dtype: str) -> dict[str, Scheme]:
    return {
        **{f"cast to {name}": Cast(name) for name in ("F32", "F16", "BF16")},
        **{name: Ggml(name) for name in ("Q4_K", "Q6_K", "Q8_0", "IQ4_XS")},
        **{
            f"{code} by {unit}, {numerics}": Scaled(
                "S", dtype, code, unit, numerics, group_size=32, packed=packed
            )
            for code, unit, packed in (
                ("E4M3", "channel", False),
                ("E4M3", "block", False),
                ("E4M3", "tensor", False),
                ("INT8", "channel", False),
                ("INT4", "group", True),
            )
            for numerics in ("ct-eager", "fp32-scales")
        },
        "NVFP4": Nvfp4("N", dtype),
        "MXFP4": Mxfp4("M", dtype),
    }


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("name", schemes(""))
def test_no_scheme_takes_more_per_value_than_the_budget_reckons_with(name: str, dtype: str) -> None:
    scheme, shape = schemes(dtype)[name], (256, 2048)
    values = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    raw = np.asarray(round_to(values, dtype))
    state = np.float32(0.1)
    scheme.encode(Block("x", dtype, 0, raw[:128]), state, None)  # tables are built once
    tracemalloc.start()
    try:
        whole = Block("x", dtype, 0, raw.copy())
        whole.check_finite()
        whole.float32()  # another encoding wants the values as they lie, this one reordered
        block = whole.permuted(HeadInterleave(64).order(shape[0]))
        if scheme.needs_reduce:
            scheme.reduce(None, block)
        scheme.encode(block, state, None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / values.size <= WORKING_BYTES_PER_VALUE, peak / values.size


def test_a_large_tensor_stays_under_the_budget(tmp_path: Path) -> None:
    shape = ["--rows", "16384", "--columns", "4096", "--memory", "48MiB", "--threads", "2"]
    words = [sys.executable, "-m", "benchmarks.memory", *shape, "--work", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(134,217,728 bytes)" in done.stdout


def test_buffers_of_large_blocks_do_not_outlast_their_share_of_the_memory(tmp_path: Path) -> None:
    """128 rows of down_proj of the 405B are 13.6 MB, which every thread would keep."""
    source, shape = write_checkpoint(tmp_path / "s", shape=Shape(layers=1)), (128 * 32, 4096)
    budget = 128 * shape[1] * WORKING_BYTES_PER_VALUE
    with Checkpoint.open(source) as checkpoint:
        wide = TensorInfo("wide", "F32", shape, "wide.safetensors", 0)
        with (source / wide.file).open("wb") as stream:
            stream.truncate(wide.size_bytes)
        status = (source / wide.file).stat()
        checkpoint.shards = (wide.file,)
        checkpoint.stamps = {wide.file: (status.st_size, status.st_mtime_ns)}
        checkpoint.tensors = {wide.name: wide}
        scheme = Scaled("FP8_BLOCK", "F32", "E4M3", "block")
        plan = plan_run([one_file(tensor(checkpoint, "wide", scheme))])
        make(plan, checkpoint, tmp_path / "first", threads=1, memory_bytes=budget)
        tracemalloc.start()
        try:
            make(plan, checkpoint, tmp_path / "out", threads=16, memory_bytes=budget)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak <= budget, f"{peak:,} of {budget:,}"


def test_threads_are_as_many_as_the_processors_that_may_be_used() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)


def test_who_finds_too_little_memory_waits() -> None:
    memory, log = Memory(10 * WORKING_BYTES_PER_VALUE), []

    def work(values: int) -> None:
        with memory.taken(values):
            log.append(values)
            time.sleep(0.02)
            log.append(-values)

    threads = [threading.Thread(target=work, args=(values,)) for values in (6, 5, 10, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(log) == [-10, -7, -6, -5, 5, 6, 7, 10]
    assert max(np.cumsum(log)) <= 10
