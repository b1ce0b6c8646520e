"""A stopped run is taken up where it stopped, as far as what it wrote is sound and still wanted."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.errors import InputError, OutputError, TensorError
from convert.journal import RECORD, Binding, Journal, journal_path, read_journal
from convert.memory import WORKING_BYTES_PER_VALUE
from convert.run import RESUMABLE
from convert.staging import SIDECAR_NAME, STAGING_NAME, check_names
from quantize.job import quantize
from tests.convert.outputs import assert_complete
from tests.miniature import Shape, write_checkpoint

TARGETS = ["FP8_TENSOR", "Q8_0", "F16"]
BLOCKS: dict[str, Any] = {"threads": 1, "memory_bytes": WORKING_BYTES_PER_VALUE * 64 * 512}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    quantize(str(source), out, TARGETS, name="m")
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def stop(source: Path, out: Path, share: float, targets: list[str] = TARGETS) -> None:
    """A run that is interrupted when it has read such a share of what it reads."""

    def interrupt(done: int, total: int, what: str) -> None:
        if done > share * total and what.startswith("model."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        quantize(str(source), out, targets, name="m", on_progress=interrupt, **BLOCKS)
    assert raised.value.__notes__ == [RESUMABLE]
    assert [path.name for path in out.iterdir()] == [STAGING_NAME]


def resume(
    source: Path, out: Path, targets: list[str] = TARGETS, **how: Any
) -> list[tuple[int, int, str]]:
    """The progress of the run that takes it up: only what reads weights."""
    calls: list[tuple[int, int, str]] = []
    how = BLOCKS | how
    quantize(str(source), out, targets, name="m", on_progress=lambda *c: calls.append(c), **how)
    assert not (out / STAGING_NAME).exists()
    return [
        call for call in calls if not call[2].startswith(("checking ", "measuring ", "hashing "))
    ]


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_only_what_is_missing_is_read_and_progress_begins_at_what_is_done(
    tmp_path: Path, source: Path, whole: dict[str, bytes], share: float
) -> None:
    stop(source, tmp_path, share)
    calls = resume(source, tmp_path)
    assert contents(tmp_path) == whole
    done, total, _ = calls[0]
    assert calls[-1][:2] == (total, total)
    assert done > (share - 0.05) * total


@pytest.mark.parametrize(
    "how", [{"memory_bytes": WORKING_BYTES_PER_VALUE * 32 * 512}, {"memory_bytes": 1 << 30}]
)
def test_other_blocks_and_threads_go_on_all_the_same(
    tmp_path: Path, source: Path, whole: dict[str, bytes], how: dict[str, Any]
) -> None:
    stop(source, tmp_path, 0.7)
    resume(source, tmp_path, threads=2, **how)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("target", ["Q8_0", "F16"])
def test_a_damaged_block_is_made_again_and_no_other(
    tmp_path: Path, source: Path, whole: dict[str, bytes], target: str
) -> None:
    stop(source, tmp_path, 0.9, [target])
    staging = tmp_path / STAGING_NAME
    file = staging / f"m-{target}.gguf"
    before = shutil.copytree(staging, tmp_path / "copy")
    clean = resume(source, tmp_path, [target])
    (tmp_path / file.name).unlink()
    shutil.copytree(before, staging)
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 3)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    calls = resume(source, tmp_path, [target])
    assert len(calls) == len(clean) + 1
    assert contents(tmp_path)[file.name] == whole[file.name]
    name = f"{file.name}.{SIDECAR_NAME}"
    assert contents(tmp_path)[name] == whole[name], "changed values are counted once"


@pytest.mark.parametrize("what", ["source", "tool", "options"])
def test_another_source_tool_or_recipe_begins_anew_and_says_why(
    tmp_path: Path,
    source: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    copy = shutil.copytree(source, tmp_path / "s")
    out = tmp_path / "out"
    stop(copy, out, 0.9)
    how: dict[str, Any] = {}
    if what == "source":
        os.utime(copy / "model.safetensors", ns=(1, 1))
        reason = "the source has changed since"
    elif what == "tool":
        monkeypatch.setattr("convert.job.tool_version", lambda: "hermes-quant 99")
        reason = "it was made by hermes-quant 0.1.0"
    else:
        how["metadata"] = tmp_path / "metadata.json"
        how["metadata"].write_text('{"general.author": "Somebody"}')
        reason = "it was made with other options or side files"
    with caplog.at_level(logging.WARNING):
        calls = resume(copy, out, ["Q8_0"], **how)
    found = [record.getMessage() for record in caplog.records]
    assert f"m-Q8_0.gguf: what a stopped run had made of it is removed: {reason}" in found
    assert len([line for line in found if "not asked for now" in line]) == 2
    assert calls[0][0] < 0.2 * calls[0][1]
    assert_complete(out)


def test_what_a_stopped_run_had_published_is_kept_even_with_force(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from convert import staging

    publish, calls = staging.publish, iter(range(10))

    def interrupted(*arguments: Any, **how: Any) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        publish(*arguments, **how)

    monkeypatch.setattr(staging, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(str(source), tmp_path, TARGETS, name="m", force=True)
    job = quantize(str(source), tmp_path, TARGETS, name="m", force=True)
    assert [result.kept for result in job.results] == [True, True, False]
    assert contents(tmp_path) == whole
    job = quantize(str(source), tmp_path, TARGETS, name="m", force=True)
    assert not any(result.kept for result in job.results)


def test_a_weight_that_is_not_finite_leaves_no_staging_behind(tmp_path: Path) -> None:
    edit = {"model.norm.weight": torch.full((256,), float("nan"), dtype=torch.bfloat16)}
    bad = write_checkpoint(tmp_path / "s", shape=Shape(layers=1), edit=edit)
    with pytest.raises(TensorError, match="nan at row 0, column 0") as raised:
        quantize(str(bad), tmp_path / "out", TARGETS)
    assert not hasattr(raised.value, "__notes__")
    assert not any((tmp_path / "out").iterdir())


def test_too_little_memory_says_how_much_is_needed(tmp_path: Path, source: Path) -> None:
    needed = WORKING_BYTES_PER_VALUE * 32 * 256  # one head of Q
    with pytest.raises(InputError, match=r"the smallest block of .* is 32 rows of .*; pass") as r:
        quantize(str(source), tmp_path / "out", ["Q8_0"], memory_bytes=needed - 1, threads=1)
    assert f"needs {needed:,}" in str(r.value)
    assert not (tmp_path / "out").exists()
    quantize(str(source), tmp_path / "out", ["Q8_0"], memory_bytes=needed, threads=3)


def test_a_name_that_is_too_long_for_what_is_appended_is_refused(tmp_path: Path) -> None:
    limit = os.pathconf(tmp_path, "PC_NAME_MAX")
    longest = "n" * (limit - len(".hermes-quant.json.replaced") - 5)
    with pytest.raises(OutputError, match=rf"too long a name: .* takes {limit + 1} bytes"):
        check_names(tmp_path, [f"{longest}.gguf", f"{longest}é.ggu"])
    check_names(tmp_path, [f"{longest}.gguf"])


def test_a_staging_folder_that_points_elsewhere_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / STAGING_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="cannot be written to"):
        quantize(str(source), out, TARGETS)
    assert (out / STAGING_NAME).is_symlink()


def test_a_journal_is_read_back_without_what_is_torn(tmp_path: Path) -> None:
    path, binding = journal_path(tmp_path, "a"), Binding("tool", "source", "print")
    journal = Journal(path, binding)
    rows = [(1, 2, (0, 64), 3, 0xFFFFFFFF), (0, 0, (64, 1 << 40), 0, 7), (0, 0, (0, 64), 1, 0)]
    for row in rows:
        journal.append(*row)
    journal.close()
    found = read_journal(path)
    assert found is not None
    assert found[0] == binding
    assert [tuple(r)[:6] for r in found[1].tolist()] == sorted(
        (file, tensor, *span, changed, checksum) for file, tensor, span, changed, checksum in rows
    )
    body = path.read_bytes()
    for cut in range(len(body) - 2 * RECORD.itemsize + 1, len(body)):
        path.write_bytes(body[:cut])
        torn = read_journal(path)
        assert torn is not None
        assert len(torn[1]) == 1 + (cut >= len(body) - RECORD.itemsize)
    for at in range(len(body) - RECORD.itemsize, len(body)):
        path.write_bytes(body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :])
        flipped = read_journal(path)
        assert flipped is not None
        assert len(flipped[1]) == 2
    for bad in (b"", b"{}\n", b"\xff\n", b'{"schema_version": 1, "tool": "t"}\n', b"[]\n"):
        path.write_bytes(bad)
        assert read_journal(path) is None
    path.write_bytes(body + bytes(RECORD.itemsize))  # what a power loss leaves of an append
    zeros = read_journal(path)
    assert zeros is not None
    assert np.array_equal(zeros[1], found[1])
