"""What could not be flushed is not believed, though the kernel's cache still shows it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert import staged_files
from convert.errors import OutputError
from convert.staging import STAGING_NAME
from quantize.job import quantize
from tests.convert.test_resume import BLOCKS, TARGETS, contents, resume, stop
from tests.miniature import Shape, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    quantize(str(source), out, TARGETS, name="m")
    return contents(out)


def failing(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """A disk that fails at the first call of this name for an output; those flushed so far."""
    flush: Callable[[int], None] = getattr(os, name)
    calls: list[int] = []

    def broken(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith((".gguf", ".safetensors")):
            calls.append(descriptor)
            if len(calls) == 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(staged_files, "DIRTY_BYTES", 1 << 16)
    monkeypatch.setattr(os, name, broken)
    return calls


@pytest.mark.parametrize("name", ["fdatasync", "fsync"])
def test_after_a_failed_flush_nothing_is_taken_up(
    tmp_path: Path,
    source: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    out = tmp_path / "out"
    failing(monkeypatch, name)
    expected = r"m-.*: cannot be flushed to the disk: Input/output error"
    with pytest.raises(OutputError, match=expected) as raised:
        quantize(str(source), out, TARGETS, name="m", **BLOCKS)
    assert not hasattr(raised.value, "__notes__")
    assert not any(out.iterdir())
    calls = resume(source, out)
    assert calls[0][0] < 0.1 * calls[0][1], "it begins anew"
    assert contents(out) == whole


def test_a_flush_that_fails_while_the_run_is_being_interrupted_counts_too(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = failing(monkeypatch, "fdatasync")

    def interrupt(done: int, total: int, what: str) -> None:
        if flushed:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, OutputError)) as raised:
        quantize(str(source), tmp_path, TARGETS, name="m", on_progress=interrupt, **BLOCKS)
    assert not hasattr(raised.value, "__notes__")
    assert not any(tmp_path.iterdir())


def test_what_a_stopped_run_wrote_is_read_from_the_disk_and_not_from_the_cache(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(source, tmp_path, 0.9)
    calls: list[tuple[str, int]] = []

    def watched(name: str) -> None:
        original: Callable[..., Any] = getattr(os, name)

        def call(descriptor: int, *arguments: Any) -> Any:
            if name != "posix_fadvise" or arguments == (0, 0, os.POSIX_FADV_DONTNEED):
                calls.append((name, descriptor))
            return original(descriptor, *arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fdatasync", "posix_fadvise", "pread"):
        watched(name)
    resume(source, tmp_path)
    read = {descriptor for name, descriptor in calls if name == "pread"}
    assert len(read) >= 3, "a file of every target"
    for descriptor in read:
        names = [name for name, which in calls if which == descriptor]
        assert names[:3] == ["fdatasync", "posix_fadvise", "pread"]
    assert contents(tmp_path) == whole


def test_a_disk_that_lost_what_a_stopped_run_wrote_is_noticed_before_it_is_believed(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error that nobody was there to hear: it comes with the first flush of the next run."""
    stop(source, tmp_path, 0.9)
    failing(monkeypatch, "fdatasync")
    with pytest.raises(OutputError, match="cannot be flushed to the disk"):
        quantize(str(source), tmp_path, TARGETS, name="m", **BLOCKS)
    assert not (tmp_path / STAGING_NAME).exists()
    resume(source, tmp_path)
    assert contents(tmp_path) == whole


def test_a_disk_that_is_read_only_after_a_failed_flush_does_not_hide_why_the_run_stopped(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ext4 is remounted; what it holds is compared with its checksums once it is mended."""
    flushed = failing(monkeypatch, "fdatasync")
    expected = r"m-.*: cannot be flushed to the disk: Input/output error"
    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir"):
            original: Callable[..., None] = getattr(os, name)

            def refuse(*a: Any, _original: Callable[..., None] = original, **k: Any) -> None:
                if flushed:
                    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
                _original(*a, **k)

            patch.setattr(os, name, refuse)
        with pytest.raises(OutputError, match=expected):
            quantize(str(source), tmp_path, TARGETS, name="m", **BLOCKS)
    resume(source, tmp_path)
    assert contents(tmp_path) == whole


def complaining(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that tells only when an output or a journal is closed that it has no room."""
    close: Callable[[int], None] = os.close

    def late(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        close(descriptor)
        if STAGING_NAME in name and name.endswith((".gguf", ".safetensors", ".journal")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "close", late)


def test_what_closing_says_of_flushed_files_and_of_journals_does_not_stop_a_run(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    complaining(monkeypatch)
    quantize(str(source), tmp_path, TARGETS, name="m", **BLOCKS)
    assert contents(tmp_path) == whole


def test_what_closing_says_of_files_that_were_not_flushed_is_a_failed_flush(
    tmp_path: Path, source: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        if done > 0.5 * total and what.startswith("model."):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        complaining(patch)
        with pytest.raises(KeyboardInterrupt) as raised:
            quantize(str(source), tmp_path, TARGETS, name="m", on_progress=interrupt, **BLOCKS)
    assert not hasattr(raised.value, "__notes__")
    assert not any(tmp_path.iterdir())
    resume(source, tmp_path)
    assert contents(tmp_path) == whole
