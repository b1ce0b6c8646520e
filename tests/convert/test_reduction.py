"""A scheme that needs a whole group first sees every block of it, once, before the first encode."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.checkpoint import Checkpoint
from convert.memory import WORKING_BYTES_PER_VALUE
from convert.output_tensor import Encoded, HeadInterleave, Importance, OutputTensor, Part, Source
from convert.plan import plan_run
from convert.tensor import Block
from tests.convert.plans import K, Q, V, make, one_file, tensor


@dataclass(frozen=True)
class Centred:
    """Values minus the mean of the whole group, in float64: needs every block of it first."""

    name: str = "CENTRED"
    numerics: str = "test"
    block_rows: int = 4
    needs_reduce: bool = True
    reduced: list[tuple[str, int, int]] = field(default_factory=list, compare=False)
    encoded: threading.Event = field(default_factory=threading.Event, compare=False)

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        columns = shape[1]
        return (Part("", "F64", shape, 1, 8 * columns), Part("_mean", "F64", (shape[0],), 1, 8))

    def reduce(self, state: Any, block: Block) -> Any:
        assert not self.encoded.is_set(), "a group is reduced before anything is encoded"
        self.reduced.append((block.name, block.first_row, len(block.raw)))
        total, count = state or (0.0, 0)
        return total + float(block.float32().astype(np.float64).sum()), count + block.raw.size

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        self.encoded.set()
        mean = state[0] / state[1]
        return Encoded((block.float32().astype(np.float64) - mean, np.full(len(block.raw), mean)))

    def decode(self, stored: Any, shape: tuple[int, ...]) -> Any:
        raise AssertionError


@pytest.mark.parametrize("budget", [1 << 30, 3 * WORKING_BYTES_PER_VALUE * 256 * 12])
def test_a_group_is_reduced_over_every_block_before_it_is_encoded(
    tmp_path: Path, miniature: Path, budget: int
) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        scheme = Centred()
        together = [tensor(checkpoint, n, scheme, group="qkv") for n in (Q, K, V)]
        alone = tensor(checkpoint, "model.layers.1.self_attn.q_proj.weight", scheme)
        permuted = replace(together[0], row_order=HeadInterleave(32))
        plan = plan_run([one_file(*together, alone), one_file(permuted, name="y")])
        assert plan.read_bytes == 2 * 2 * (2 * 256 + 128 + 128) * 256, "everything is read twice"
        make(plan, checkpoint, tmp_path, threads=3, memory_bytes=budget)
        stored = np.frombuffer((tmp_path / "x").read_bytes(), dtype=np.float64)
        groups = [[t.name for t in together], [alone.name]]
        at = 0
        for names in groups:
            values = [torch.from_numpy(rows(checkpoint, name)).double() for name in names]
            mean = torch.cat(values).mean().item()
            for value in values:
                count = value.numel()
                found, means = stored[at : at + count], stored[at + count : at + count + len(value)]
                np.testing.assert_allclose(found, (value - mean).reshape(-1), atol=1e-12)
                np.testing.assert_allclose(means, mean)
                at += count + len(value)
        assert at == len(stored)
        q = stored[: 256 * 256].reshape(256, 256)[HeadInterleave(32).order(256)]
        assert (tmp_path / "y").read_bytes()[: q.nbytes] == q.tobytes()
    covered = Counter(
        (name, row) for name, first, count in scheme.reduced for row in range(first, first + count)
    )
    assert set(covered.values()) == {1}, "each row once, though two files want it differently"
    assert len(covered) == 2 * 256 + 128 + 128


def rows(checkpoint: Checkpoint, name: str) -> np.ndarray:
    info = checkpoint.tensors[name]
    return checkpoint.read_rows(info, 0, info.rows).float32()


def test_a_reduction_sees_the_rows_of_its_sources_and_no_others(
    tmp_path: Path, miniature: Path
) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        info = checkpoint.tensors[Q]
        scheme = Centred()
        part = OutputTensor("p", (20, 256), "BF16", scheme, (Source(info, 8, 28),))
        plan = plan_run([one_file(part)])
        assert plan.read_bytes == 2 * 256 * (256 + 20)
        make(plan, checkpoint, tmp_path, threads=1)
        values = rows(checkpoint, Q)[8:28].astype(np.float64)
        stored = np.frombuffer((tmp_path / "x").read_bytes(), dtype=np.float64)
        np.testing.assert_allclose(stored[: 20 * 256], (values - values.mean()).reshape(-1))
    assert sorted(scheme.reduced) == [(Q, 8, 20)]
