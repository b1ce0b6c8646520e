"""The kernel is asked for blocks before their turn, for those that will be read and no others."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantize.job import quantize
from tests.convert.test_resume import BLOCKS, resume, stop
from tests.miniature import Shape, write_checkpoint

SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


@dataclass
class Watch:
    """Which bytes of the source were asked for and read; how many reads there were, and how many
    of them of bytes that had not been asked for."""

    asked: NDArray[np.bool_]
    read: NDArray[np.bool_]
    reads: int = 0
    cold: int = 0
    sizes: set[int] = field(default_factory=set)


@pytest.fixture
def watch(source: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    size = (source / SHARD).stat().st_size
    found = Watch(np.zeros(size, dtype=np.bool_), np.zeros(size, dtype=np.bool_))
    advise: Callable[..., None] = os.posix_fadvise
    preadv: Callable[..., int] = os.preadv

    def advised(descriptor: int, offset: int, size: int, advice: int) -> None:
        if advice == os.POSIX_FADV_WILLNEED:
            found.asked[offset : offset + size] = True
            found.sizes.add(size)
        advise(descriptor, offset, size, advice)

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        count = preadv(descriptor, buffers, offset)
        found.read[offset : offset + count] = True
        found.reads += 1
        found.cold += not found.asked[offset : offset + count].all()
        return count

    monkeypatch.setattr(os, "posix_fadvise", advised)
    monkeypatch.setattr(os, "preadv", counted)
    return found


@pytest.mark.parametrize(("target", "reductions"), [("Q8_0", 0), ("FP8_TENSOR", 7)])
def test_all_but_the_first_blocks_are_asked_for_before_they_are_read(
    tmp_path: Path, source: Path, watch: Watch, target: str, reductions: int
) -> None:
    """Of a run, and of each reduction."""
    quantize(str(source), tmp_path, [target], name="m", **BLOCKS)
    assert watch.asked.any()
    assert not (watch.asked & ~watch.read).any()
    assert watch.cold <= 2 * (1 + reductions)
    assert watch.reads > 2 * watch.cold
    assert max(watch.sizes) <= 1 << 17, "the kernel takes no more of one request"


def test_what_is_done_is_not_asked_for(tmp_path: Path, source: Path, watch: Watch) -> None:
    stop(source, tmp_path, 0.7, ["Q8_0"])
    watch.asked[:] = watch.read[:] = False
    resume(source, tmp_path, ["Q8_0"])
    assert watch.asked.any()
    assert not (watch.asked & ~watch.read).any()
    assert not watch.read.all()
