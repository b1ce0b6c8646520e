"""A source that changes or cannot be read: the run stops at once and keeps only what is sound."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert import safetensors, staging
from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, OutputError
from convert.model import open_model, plan_float
from convert.plan import plan_run
from convert.run import RESUMABLE
from convert.staging import STAGING_NAME
from convert.tensor import TensorInfo
from quantize.job import quantize
from tests.convert.outputs import assert_complete
from tests.convert.plans import make
from tests.convert.test_resume import BLOCKS, contents, resume
from tests.miniature import Shape, change_json, write_checkpoint

TARGETS = ["FP8_TENSOR", "Q8_0", "F16"]
SHARD = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "s", shape=Shape(layers=1))


def run_until(source: Path, out: Path, share: float, happens: Callable[[], object]) -> None:
    """A run during which something happens at such a share."""
    calls = iter([happens])

    def on_progress(done: int, total: int, what: str) -> None:
        if done > share * total and what.startswith("model."):
            next(calls, int)()

    quantize(str(source), out, TARGETS, name="m", on_progress=on_progress, **BLOCKS)


def test_a_change_is_noticed_at_the_next_block_and_not_at_the_end(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, reads = os.preadv, []

    def touch() -> None:
        os.utime(source / SHARD, ns=(1, 1))
        reads.clear()

    def counted(*arguments: Any) -> int:
        reads.append(arguments)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", counted)
    with pytest.raises(CheckpointError, match=rf"{SHARD}: changed while it was read"):
        run_until(source, tmp_path / "out", 0.1, touch)
    assert len(reads) == 1
    assert not any((tmp_path / "out").iterdir())


def test_no_block_of_a_changed_source_is_kept_for_when_the_old_one_is_back(
    tmp_path: Path, source: Path
) -> None:
    """As rsync --times leaves it: the old bytes and the old time."""
    quantize(str(source), tmp_path / "whole", TARGETS, name="m")
    shard, out = source / SHARD, tmp_path / "out"
    before, kept = shard.stat(), shard.read_bytes()
    blocks = iter(range(1000))

    def on_progress(done: int, total: int, what: str) -> None:
        if done > 0.3 * total and what.startswith("model."):
            block = next(blocks)
            if block == 0:
                half = len(kept) // 2
                with shard.open("r+b") as stream:
                    stream.seek(half)
                    stream.write(bytes(len(kept) - half))
            if block == 5:
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, CheckpointError)) as raised:
        quantize(str(source), out, TARGETS, name="m", on_progress=on_progress, **BLOCKS)
    assert not hasattr(raised.value, "__notes__")
    shard.write_bytes(kept)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    resume(source, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_interrupted_after_a_change_nothing_is_promised(tmp_path: Path, source: Path) -> None:
    def change_and_interrupt() -> None:
        os.utime(source / SHARD, ns=(1, 1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        run_until(source, tmp_path / "out", 0.5, change_and_interrupt)
    assert not hasattr(raised.value, "__notes__")
    assert not any((tmp_path / "out").iterdir())


def test_a_side_file_that_changes_is_not_copied_as_what_it_was(
    tmp_path: Path, source: Path
) -> None:
    def change() -> None:
        change_json(source / "tokenizer_config.json", model_max_length=7)

    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: changed while") as raised:
        run_until(source, out, 0.5, change)
    assert raised.value.__notes__ == [RESUMABLE], "the weights are what they were"
    assert [path.name for path in out.iterdir()] == [STAGING_NAME]
    resume(source, out)
    assert_complete(out)
    copied = (out / "m-FP8_TENSOR" / "tokenizer_config.json").read_bytes()
    assert copied == (source / "tokenizer_config.json").read_bytes()
    quantize(str(source), tmp_path / "whole", TARGETS, name="m")
    assert contents(out) == contents(tmp_path / "whole")


def test_a_config_that_changes_after_it_was_read_stops_the_run(
    tmp_path: Path, source: Path
) -> None:
    """Else its outputs would be described as made from a config that they were not made from."""
    with open_model(str(source), "m") as model:
        plan = plan_run([plan_float(model, "BF16")])
        change_json(source / "config.json", rope_theta=7.0)
        with pytest.raises(CheckpointError, match=r"config\.json: changed while it was read"):
            make(plan, model.checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_changes_while_its_header_is_read_is_noticed(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_header = safetensors.read_header

    def late(path: Path, file: str) -> list[TensorInfo]:
        header = read_header(path, file)
        os.utime(path, ns=(1, 1))
        return header

    monkeypatch.setattr(safetensors, "read_header", late)
    with (
        Checkpoint.open(source) as checkpoint,
        pytest.raises(CheckpointError, match="changed while it was read"),
    ):
        checkpoint.open_shards()


def broken_disk(monkeypatch: pytest.MonkeyPatch, reads: int) -> list[int]:
    """After so many reads the source's disk fails; the offset at which it did."""
    preadv, offsets = os.preadv, []

    def broken(descriptor: int, buffers: Any, offset: int) -> int:
        offsets.append(offset)
        if len(offsets) > reads:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    return offsets


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_read_error_names_shard_and_offset_and_what_was_done_is_kept(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """Whether or not the disk, or the server it is on, can still say how old the file is."""
    quantize(str(source), tmp_path / "whole", TARGETS, name="m")
    out, away = tmp_path / "out", tmp_path / "away"

    def leave(done: int, total: int, what: str) -> None:
        if is_gone and len(offsets) == 35:
            source.rename(away)

    with monkeypatch.context() as patch:
        offsets = broken_disk(patch, 35)
        with pytest.raises(CheckpointError) as raised:
            quantize(str(source), out, TARGETS, name="m", on_progress=leave, **BLOCKS)
    found = f"{SHARD}: read error at byte {offsets[-1]}: Input/output error"
    assert str(raised.value).endswith(found)
    assert raised.value.__notes__ == [RESUMABLE]
    if is_gone:
        away.rename(source)
    calls = resume(source, out)
    assert calls[0][0] > 0.1 * calls[0][1], "what had been read is not read again"
    assert contents(out) == contents(tmp_path / "whole")


def test_a_side_file_that_cannot_be_read_is_named_and_not_its_copy(
    tmp_path: Path, source: Path
) -> None:
    def replace() -> None:
        (source / "tokenizer.json").unlink()
        (source / "tokenizer.json").mkdir()

    expected = rf"{source / 'tokenizer.json'}: cannot be read: Is a directory"
    with pytest.raises(CheckpointError, match=expected):
        run_until(source, tmp_path / "out", 0.9, replace)


def test_an_output_that_cannot_be_read_back_is_one_line(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, on_read: object = None) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(staging, "hash_file", broken)
        expected = r"m-.*: cannot be read: Input/output error"
        with pytest.raises(OutputError, match=expected) as raised:
            quantize(str(source), tmp_path / "out", TARGETS, name="m")
    assert raised.value.__notes__ == [RESUMABLE]
    shutil.rmtree(tmp_path / "out")


def test_nothing_is_promised_where_a_changed_side_file_leaves_nothing_to_go_on_from(
    tmp_path: Path, source: Path
) -> None:
    def change(done: int, total: int, what: str) -> None:
        if what.startswith("model."):
            (source / "tokenizer_config.json").write_text('{"model_max_length": 7}')

    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: changed while") as raised:
        quantize(str(source), out, ["FP8_TENSOR", "W8A8"], name="m", on_progress=change, **BLOCKS)
    assert not hasattr(raised.value, "__notes__")
    assert not any(out.iterdir())
