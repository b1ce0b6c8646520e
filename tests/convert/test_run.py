"""One read, many writes: the bytes depend on nothing but the source and the plan."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.memory import WORKING_BYTES_PER_VALUE, block_values, working_memory_bytes
from convert.model import open_model, plan_float
from convert.output_tensor import Encoded, HeadInterleave, Importance, OutputTensor, Part, Source
from convert.plan import plan_run
from convert.run import run
from convert.tensor import Block
from quantize.job import Options, planners
from quantize.job import quantize as quantize_job
from tests.convert.plans import K, Q, V, make, one_file, tensor
from tests.miniature import write_checkpoint

PLANNERS = planners(Options())
LEAST_MEMORY = WORKING_BYTES_PER_VALUE * 32 * 256  # a head of 32 rows; less is refused
TARGETS = ["FP8_DYNAMIC", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL", "F32", "F16", "BF16"]


def hashes(out: Path) -> dict[str, str]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_bytes_do_not_depend_on_threads_or_block_size(tmp_path: Path, miniature: Path) -> None:
    with open_model(str(miniature), "m") as opened:
        plan = plan_run([PLANNERS[target](opened, target) for target in TARGETS])
        ways = [(1, 1 << 30), (3, 1 << 20), (2, LEAST_MEMORY)]
        for i, (threads, budget) in enumerate(ways):
            out = tmp_path / str(i)
            make(plan, opened.checkpoint, out, threads=threads, memory_bytes=budget)
            assert hashes(out) == hashes(tmp_path / "0")
    assert len(hashes(tmp_path / "0")) == 2 * (len(TARGETS) - 1) + 8


def test_all_at_once_is_the_same_as_one_at_a_time(tmp_path: Path, miniature: Path) -> None:
    quantize_job(str(miniature), tmp_path / "all", TARGETS, name="m")
    for target in TARGETS:
        quantize_job(str(miniature), tmp_path / "each", [target], name="m")
    together, alone = hashes(tmp_path / "all"), hashes(tmp_path / "each")
    assert together.keys() == alone.keys()
    differ = {name for name in alone if together[name] != alone[name]}
    assert all(name.endswith("hermes-quant.json") for name in differ)  # they name the recipe


def test_blocks_stay_under_the_budget(miniature: Path) -> None:
    for memory, threads in ((1 << 30, 2), (1 << 20, 3), (1 << 40, 64)):
        assert 0 < block_values(memory, threads) <= memory // threads // WORKING_BYTES_PER_VALUE
    with Checkpoint.open(miniature) as checkpoint:
        heads = replace(tensor(checkpoint, Q, Cast("BF16")), row_order=HeadInterleave(64))
        plan = plan_run([one_file(heads)])
    least = 64 * 256 * WORKING_BYTES_PER_VALUE
    assert working_memory_bytes(plan, 3 * least, 8) == 3 * least, "three threads at a time"
    assert working_memory_bytes(plan, 1 << 30, 1) == 48 << 20


@dataclass(frozen=True)
class Spy:
    """Stores float32 and notes which blocks it was given."""

    name: str
    seen: Counter = field(default_factory=Counter, compare=False)
    limit: list[int] = field(default_factory=list, compare=False)
    numerics: str = "test"
    block_rows: int = 1
    needs_reduce: bool = False

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        return (Part("", "F32", shape, 1, 4 * int(np.prod(shape[1:]))),)

    def reduce(self, state: Any, block: Block) -> Any:
        raise AssertionError

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        self.seen[block.name, block.first_row] += 1
        self.limit.append(block.raw.size)
        return Encoded((block.float32(),), 1)

    def decode(self, stored: Any, shape: tuple[int, ...]) -> Any:
        raise AssertionError


def test_what_several_files_share_is_encoded_once(tmp_path: Path, miniature: Path) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        spy, other = Spy("a"), Spy("b")
        first = one_file(tensor(checkpoint, Q, spy), tensor(checkpoint, V, spy), name="one")
        renamed = replace(tensor(checkpoint, Q, spy), name="blk.0.attn_q.weight")
        second = one_file(tensor(checkpoint, K, other), renamed, name="two")
        plan = plan_run([first, second])
        make(
            plan,
            checkpoint,
            tmp_path,
            threads=2,
            memory_bytes=2 * WORKING_BYTES_PER_VALUE * 256 * 10,
        )
        assert max(spy.seen.values()) == 1
        assert {name for name, _ in spy.seen} == {Q, V}
        assert sum(spy.limit) == (256 + 128) * 256
        assert max(spy.limit) == 10 * 256, "blocks are as large as the budget says"
        q = checkpoint.read_rows(checkpoint.tensors[Q], 0, 256).float32().tobytes()
        assert plan.read_bytes == 2 * (256 + 128 + 128) * 256
    assert (tmp_path / "one").read_bytes()[: len(q)] == q
    assert (tmp_path / "two").read_bytes()[-len(q) :] == q


def test_another_order_or_importance_is_another_encoding(miniature: Path) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        plain = tensor(checkpoint, Q, Spy("a"))
        others = (
            replace(plain, row_order=HeadInterleave(32)),
            replace(plain, importance=Importance("x", np.ones(256, dtype=np.float32))),
            replace(plain, scheme=Spy("b")),
            replace(plain, group="g"),
        )
        assert len(plan_run([one_file(plain, *others)]).encodings) == 5
        again = replace(plain, importance=Importance("x", np.ones(256, dtype=np.float32)))
        assert len(plan_run([one_file(plain, others[1], again)]).encodings) == 2


def test_stacked_sources_and_slices(tmp_path: Path, miniature: Path) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        q, v = checkpoint.tensors[Q], checkpoint.tensors[V]
        sources = (Source(q, 32, 96), Source(v, 0, 128), Source(q, 0, 32))
        stacked = OutputTensor("s", (224, 256), "BF16", Cast("BF16"), sources)
        plan = plan_run([one_file(stacked)])
        for threads, budget in ((1, 1 << 30), (3, 3 * WORKING_BYTES_PER_VALUE * 256 * 7)):
            out = tmp_path / str(threads)
            make(plan, checkpoint, out, threads=threads, memory_bytes=budget)
            expected = checkpoint.read_rows(q, 32, 96).raw.tobytes()
            expected += checkpoint.read_rows(v, 0, 128).raw.tobytes()
            expected += checkpoint.read_rows(q, 0, 32).raw.tobytes()
            assert (out / "x").read_bytes() == expected


def cut(shard: Path) -> None:
    os.truncate(shard, shard.stat().st_size - 100_000)


def touch(shard: Path) -> None:
    os.utime(shard, ns=(1, 1))


def swap(shard: Path) -> None:
    copy = shard.with_suffix(".copy")
    copy.write_bytes(shard.read_bytes())
    copy.replace(shard)


@pytest.mark.parametrize(
    ("change", "found"),
    [(cut, r"cut while it was read|changed"), (touch, "changed"), (swap, "changed")],
)
def test_a_source_that_changes_while_it_is_read_stops_the_run(
    tmp_path: Path, change: Callable[[Path], None], found: str
) -> None:
    source = write_checkpoint(tmp_path / "s", shards=2)
    shard = source / "model-00002-of-00002.safetensors"
    changed = threading.Event()

    def on_progress(done: int, total: int, name: str) -> None:
        if not changed.is_set():
            changed.set()
            change(shard)

    with pytest.raises(CheckpointError, match=f"model-00002-of-00002.safetensors: .*({found})"):
        quantize_job(str(source), tmp_path / "out", ["BF16"], on_progress=on_progress)
    assert list((tmp_path / "out").iterdir()) == []


def test_progress_counts_every_byte_read(tmp_path: Path, miniature: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    job = quantize_job(
        str(miniature), tmp_path, TARGETS, on_progress=lambda *call: calls.append(call)
    )
    hashed = [call for call in calls if call[2].startswith("hashing ")]
    assert hashed[-1][:2] == (sum(result.artifact.size_bytes for result in job.results),) * 2
    calls = calls[: -len(hashed)]
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[-1] == job.plan.read_bytes == calls[0][1]
    shards = [load_file(path) for path in miniature.glob("*.safetensors")]
    assert {name for *_, name in calls} == {name for shard in shards for name in shard}
    size = sum(t.nbytes for shard in shards for t in shard.values())
    assert job.plan.read_bytes == size, "one read, however many outputs"


def test_the_first_error_of_any_thread_stops_the_run(tmp_path: Path, miniature: Path) -> None:
    @dataclass(frozen=True)
    class Broken(Spy):
        def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
            if block.first_row > 100:
                raise ZeroDivisionError
            return super().encode(block, state, importance)

    with Checkpoint.open(miniature) as checkpoint:
        plan = plan_run([one_file(tensor(checkpoint, Q, Broken("b")))])
        with pytest.raises(ZeroDivisionError):
            make(
                plan,
                checkpoint,
                tmp_path / "out",
                threads=3,
                memory_bytes=3 * WORKING_BYTES_PER_VALUE * 256,
            )
    assert list((tmp_path / "out").iterdir()) == []


def test_changed_values_are_counted_in_every_file_they_go_to(
    tmp_path: Path, miniature: Path
) -> None:
    with open_model(str(miniature), "m") as opened:
        plan = plan_run([plan_float(opened, "F16"), plan_float(opened, "F32")])
        results = run(plan, opened.checkpoint, tmp_path, source={}, recipe={}, tool="t", threads=2)
        lost, none = (result.artifact.values_changed for result in results)
    assert lost > 0
    assert none == 0
