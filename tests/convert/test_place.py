"""What is wrong with where the outputs go is said before anything is read or computed."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from convert import job
from convert.errors import InputError, OutputError
from convert.lock import LOCK_NAME
from convert.memory import DEFAULT_MEMORY_BYTES
from convert.model import plan_float
from convert.place import Place
from convert.staging import SIDECAR_NAME, STAGING_NAME, staging_folder
from quantize.compressed_table import CALIBRATED, ONESHOT
from quantize.gguf_targets import Options
from quantize.job import plan_folder, planners, quantize
from tests.convert.outputs import TARGETS, assert_complete
from tests.miniature import Shape, write_checkpoint

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight may be read and no model run."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was read or computed")

    monkeypatch.setattr(os, "preadv", refuse)
    monkeypatch.setattr("quantize.job.calibrate", refuse)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("asked", [{"fit_bytes": 1 << 19}, {"bits_per_weight": 5.0}])
def test_a_size_is_not_measured_for_where_nothing_can_be_written(
    tmp_path: Path, source: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(OutputError, match="cannot be written to"):
        quantize(str(source), Path("/proc/none"), **asked)
    name = "m-FIT_512KIB.gguf" if "fit_bytes" in asked else "m-BPW_5.gguf"
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"{name}: exists .*--force"):
        quantize(str(source), tmp_path, name="m", **asked)
    with staging_folder(tmp_path), pytest.raises(OutputError, match="another run is writing"):
        quantize(str(source), tmp_path, name="m", force=True, **asked)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.usefixtures("unread")
def test_no_calibration_is_run_for_outputs_that_cannot_be(tmp_path: Path, source: Path) -> None:
    data, out = tmp_path / "d.jsonl", tmp_path / "out"
    data.write_text("")
    how: dict[str, Any] = {"calibration": data, "name": "m"}
    with pytest.raises(InputError, match="unknown target 'FP9'"):
        quantize(str(source), out, ["FP8", "FP9"], **how)
    with pytest.raises(InputError, match="--kv-cache-fp8 is for folders"):
        quantize(str(source), out, ["Q8_0"], kv_cache=True, **how)
    with pytest.raises(OutputError, match="cannot be written to"):
        quantize(str(source), Path("/proc/none"), ["FP8"], **how)
    assert not out.exists()
    (out / "m-FP8").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"m-FP8: exists .*--force"):
        quantize(str(source), out, ["Q8_0", "FP8"], **how)
    with pytest.raises(AssertionError, match="something was read or computed"):
        quantize(str(source), out, ["Q8_0", "FP8"], force=True, **how)


def test_the_names_looked_at_are_those_that_plans_give(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplanned(*_: Any) -> Any:
        raise AssertionError("it was planned first")

    known, made = planners(Options()), 0
    for target in known.keys() - {*CALIBRATED, *ONESHOT, "SAFETENSORS"}:
        try:
            (planned,) = quantize(str(source), tmp_path, [target], dry_run=True).plan.artifacts
        except InputError:  # it needs an imatrix
            continue
        out = tmp_path / target
        (out / planned.name).mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.setattr("convert.job.plan_edited", unplanned)
            with pytest.raises(OutputError, match=f"{planned.name}: exists"):
                quantize(str(source), out, [target])
            made += 1
    assert made > 30


def test_what_an_earlier_run_finished_is_left_to_the_plan(tmp_path: Path, source: Path) -> None:
    quantize(str(source), tmp_path, ["Q8_0"], fit_bytes=1 << 19, name="m")
    job = quantize(str(source), tmp_path, ["Q8_0"], fit_bytes=1 << 19, name="m")
    assert [result.kept for result in job.results] == [True, True]
    place = Place(tmp_path)
    place.check("m", ["Q8_0"], job.results[0].artifact.tool)
    with pytest.raises(OutputError, match=r"m-Q8_0\.gguf: exists"):
        place.check("m", ["Q8_0"], "hermes-quant 99")
    os.truncate(tmp_path / "m-Q8_0.gguf", 1000)
    with pytest.raises(OutputError, match=r"m-Q8_0\.gguf: exists"):
        place.check("m", ["Q8_0"], job.results[0].artifact.tool)


def test_where_all_is_there_already_nothing_need_be_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(str(source), tmp_path, TARGETS, name="m")

    def unlockable(*_: Any) -> Any:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("convert.staging.open_lock", unlockable)
    job = quantize(str(source), tmp_path, TARGETS, name="m")
    assert all(result.kept for result in job.results)
    with pytest.raises(OutputError, match="cannot be written to: Read-only file system"):
        quantize(str(source), tmp_path, [*TARGETS, "Q4_0"], name="m")


def test_nor_need_it_where_a_gguf_that_may_be_split_is_there(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, out in ((1 << 18, tmp_path / "split"), (1 << 30, tmp_path / "whole")):
        quantize(str(source), out, ["Q8_0"], name="m", max_file_bytes=limit)
    assert (tmp_path / "split" / "m-Q8_0").is_dir()
    assert (tmp_path / "whole" / "m-Q8_0.gguf").is_file()

    def unlockable(*_: Any) -> Any:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("convert.staging.open_lock", unlockable)
    for limit, out in ((1 << 18, tmp_path / "split"), (1 << 30, tmp_path / "whole")):
        job = quantize(str(source), out, ["Q8_0"], name="m", max_file_bytes=limit)
        assert job.results[0].kept


def test_a_gguf_that_may_be_split_has_one_of_two_names(tmp_path: Path) -> None:
    for name in ("m-Q8_0", "m-Q8_0.gguf"):
        (tmp_path / name).mkdir()
    Place(tmp_path, split=True).check("m", ["Q8_0"], "tool")


def test_the_look_leaves_nothing_behind(tmp_path: Path) -> None:
    Place(tmp_path / "a" / "b" / "out").check("m", ["Q8_0"], "tool")
    assert not any(tmp_path.iterdir())
    with pytest.raises(OutputError, match="too long a name"):
        Place(tmp_path / "a" / "b" / "out").check("m" * 230, ["Q8_0"], "tool")
    assert not any(tmp_path.iterdir())


class FilledError(Exception):
    """The library that fills a folder was begun."""


@pytest.mark.parametrize("targets", [["BF16", "FP8_DYNAMIC"], ["FP8_DYNAMIC", "W8A16"]])
def test_room_for_all_is_asked_for_before_the_first_is_made(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, targets: list[str]
) -> None:
    """The folders stand for what another library computes: each lies there twice for a while."""
    calls: list[str] = []

    def fill(*_: Any) -> Any:
        raise FilledError

    def attempt(free: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(free, 0, free))
        folder = partial(plan_folder, numerics="ct-eager")
        job.make(
            str(source),
            Place(tmp_path / "out", folders=targets),
            targets,
            {"BF16": plan_float, "FP8_DYNAMIC": folder, "W8A16": folder},
            name="m",
            metadata=None,
            recipe={},
            dry_run=False,
            memory_bytes=DEFAULT_MEMORY_BYTES,
            threads=1,
            on_progress=lambda *call: calls.append(call[2]),
            elsewhere={"FP8_DYNAMIC": fill, "W8A16": fill},
        )

    planned = quantize(str(source), tmp_path, targets, name="m", dry_run=True)
    needed = planned.disk_bytes + planned.plan.artifacts[-1].size_bytes
    with pytest.raises(OutputError, match=rf" {needed:,} bytes .* {needed - 1:,} are free"):
        attempt(needed - 1)
    assert not calls
    with pytest.raises(FilledError):
        attempt(needed)


def test_why_a_folder_was_not_made_is_said_where_nothing_can_be_removed_any_more(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any) -> Any:
        monkeypatch.setattr("convert.staging.remove", read_only)
        raise FilledError

    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(FilledError):
        job.make(
            str(source),
            Place(tmp_path / "out", folders=["W8A16"]),
            ["W8A16"],
            {"W8A16": partial(plan_folder, numerics="ct-eager")},
            name="m",
            metadata=None,
            recipe={},
            dry_run=False,
            memory_bytes=DEFAULT_MEMORY_BYTES,
            threads=1,
            on_progress=None,
            elsewhere={"W8A16": fill},
        )


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    expected = f"cannot be locked: {os.strerror(number)}; .*file system with locks"
    with pytest.raises(OutputError, match=expected):
        quantize(str(source), tmp_path, ["Q8_0"])


def test_the_lock_is_on_a_file_opened_for_writing_and_one_left_by_a_kill_is_no_hindrance(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS tells other machines only of such locks."""
    flock: Callable[[int, int], None] = fcntl.flock
    modes: list[int] = []

    def watched(descriptor: int, operation: int) -> None:
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", watched)
    (tmp_path / STAGING_NAME).mkdir()
    (tmp_path / STAGING_NAME / LOCK_NAME).touch()
    quantize(str(source), tmp_path, ["Q8_0"], name="m")
    assert {*modes} == {os.O_RDWR}
    assert {path.name for path in tmp_path.iterdir()} == {
        "m-Q8_0.gguf",
        f"m-Q8_0.gguf.{SIDECAR_NAME}",
    }
    assert_complete(tmp_path)


def test_on_nfs_where_a_file_that_is_open_is_only_renamed_no_staging_folder_stays(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client keeps what is unlinked while it is open as `.nfs...`, until it is closed."""
    unlink: Callable[..., None] = os.unlink
    close: Callable[[int], None] = os.close

    def rename(path: Any, **how: Any) -> None:
        if Path(path).name == LOCK_NAME:
            os.rename(path, Path(path).with_name(".nfs0001"))
        else:
            unlink(path, **how)

    def remove(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        close(descriptor)
        if name.endswith(".nfs0001"):
            unlink(name)

    monkeypatch.setattr(os, "unlink", rename)
    monkeypatch.setattr(os, "close", remove)
    quantize(str(source), tmp_path / "out", ["Q8_0"], name="m")
    assert not (tmp_path / "out" / STAGING_NAME).exists()
    Place(tmp_path / "new" / "out").check("m", ["Q8_0"], "tool")
    assert not (tmp_path / "new").exists()
