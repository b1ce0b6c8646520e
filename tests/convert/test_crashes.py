"""A kill at any moment, a crash before any rename, a full disk: only whole artifacts have names."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.errors import OutputError
from convert.run import RESUMABLE
from convert.staging import STAGING_NAME
from quantize.job import quantize
from tests import faults
from tests.convert.outputs import NAMES, TARGETS, assert_complete
from tests.faults import contents
from tests.miniature import Shape, write_checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


def test_a_run_killed_at_any_call_or_moment_is_taken_up_byte_for_byte(
    tmp_path: Path, source: Path
) -> None:
    arguments = [sys.executable, "-m", "tests.faults", str(source), str(tmp_path / "work")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = {*faults.CALLS, *faults.PATH_WRITES}
    assert len(done.stdout.splitlines()) == 2, "into an empty folder, and over old outputs"
    for line in done.stdout.splitlines():
        assert all(kind in line for kind in kinds), line
        killed, trials = map(int, re.search(r"(\d+) of (\d+) killed", line).groups())
        assert killed >= trials - 2, "all but the moments"


DIE_AT_EACH_RENAME = """
import os, shutil, sys
from pathlib import Path
from convert.staging import staging_folder
from quantize.job import quantize

source, old, root, *targets = sys.argv[1:]
rename = Path.rename

def mend(out):
    with staging_folder(out):
        pass

def make(out):
    quantize(source, out, targets, name="m", force=bool(old))

def died(work, out, point):
    child = os.fork()
    if not child:
        calls = iter(range(1000))
        Path.rename = lambda path, to: os._exit(9) if next(calls) == point else rename(path, to)
        work(out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

for point in range(100):
    for again in range(3 if old else 1):  # the run that mends is killed, too
        out = Path(root) / f"{point}-{again}"
        if old:
            shutil.copytree(old, out)
        if not died(make, out, point):
            sys.exit()
        if again:
            died(mend, out, again - 1)
"""


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_before_any_rename_can_be_mended(tmp_path: Path, source: Path, force: bool) -> None:
    old = tmp_path / "old" if force else None
    if old:
        older = write_checkpoint(tmp_path / "s", shape=Shape(layers=1), dtype="F16")
        quantize(str(older), old, TARGETS, name="m")
    root = tmp_path / "crashed"
    arguments = [str(source), str(old or ""), str(root), *TARGETS]
    subprocess.run([sys.executable, "-c", DIE_AT_EACH_RENAME, *arguments], check=True)
    *crashed, whole = sorted(root.iterdir(), key=lambda path: [*map(int, path.name.split("-"))])
    assert len(crashed) == (3 * 10 if force else 5), "a file and its sidecar, aside and in"
    assert_complete(whole)
    for out in crashed:
        assert_complete(out, described=out.name.endswith("-0"))
        if force:  # what was there before is put back and described, and not replaced unasked
            with pytest.raises(OutputError, match="exists and was not made from this source"):
                quantize(str(source), out, TARGETS, name="m")
            assert {path.name for path in out.iterdir()} - {STAGING_NAME} == NAMES
            assert_complete(out)
        quantize(str(source), out, TARGETS, name="m", force=force)
        assert {path.name for path in out.iterdir()} == NAMES
        assert_complete(out)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written_or_renamed_from_is_refused_before_any_work(
    small_disk: Path, source: Path
) -> None:
    calls: list[str] = []

    def attempt(out: Path, found: str) -> None:
        with pytest.raises(OutputError, match=found):
            quantize(str(source), out, ["Q8_0"], on_progress=lambda *call: calls.append(call[2]))

    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    attempt(small_disk, "cannot be written to: Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    out = small_disk.parent / "out"
    (out / STAGING_NAME).mkdir(parents=True)
    subprocess.run(["mount", "--bind", small_disk, out / STAGING_NAME], check=True)
    try:
        attempt(out, "lies on another file system")
    finally:
        subprocess.run(["umount", out / STAGING_NAME], check=True)
    assert not calls


def test_a_full_disk_is_known_beforehand(small_disk: Path, source: Path) -> None:
    with pytest.raises(OutputError, match=r"[\d,]+ bytes are needed and [\d,]+ are free"):
        quantize(str(source), small_disk, ["BF16", "F32"], name="m")
    assert not any(small_disk.iterdir())


def test_a_disk_that_fills_up_while_writing(
    small_disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(str(source), small_disk, ["Q8_0"], name="m")
    monkeypatch.setattr("convert.run._check_space", lambda *_: None)  # somebody else wrote since
    with pytest.raises(OutputError, match="the disk is full; make room"):
        quantize(str(source), small_disk, ["BF16", "F32"], name="m")
    quantize(str(source), small_disk.parent / "whole", ["Q8_0"], name="m")
    assert contents(small_disk) == contents(small_disk.parent / "whole")


def test_a_file_that_may_not_grow_so_large_is_a_full_disk(tmp_path: Path, source: Path) -> None:
    """Where no small disk can be mounted: a limit on the size of files."""
    quantize(str(source), tmp_path / "whole", TARGETS, name="m")
    size = (tmp_path / "whole" / "m-BF16.gguf").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"m-BF16\.gguf: the disk is full; make room"):
            quantize(str(source), tmp_path / "out", TARGETS, name="m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any((tmp_path / "out").iterdir())
    quantize(str(source), tmp_path / "out", TARGETS, name="m")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_disk_that_is_full_in_spite_of_what_was_reserved(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As thinly provisioned ones may be: the run goes on where it stopped."""
    quantize(str(source), tmp_path / "whole", TARGETS, name="m")
    pwrite, writes = os.pwrite, iter(range(1 << 30))

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        if next(writes) == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="the disk is full; make room") as raised:
        quantize(str(source), tmp_path / "out", TARGETS, name="m", threads=1)
    assert raised.value.__notes__ == [RESUMABLE]
    quantize(str(source), tmp_path / "out", TARGETS, name="m")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_disk_with_no_room_for_the_sidecar(small_disk: Path, source: Path) -> None:
    size = quantize(str(source), small_disk, ["BF16"], name="m", dry_run=True).disk_bytes
    usage = shutil.disk_usage(small_disk)
    filler = small_disk / "filler"
    page = 4096
    needed = -(-size // page) + 1  # and the journal
    filler.write_bytes(bytes((usage.free // page - needed) * page))
    with pytest.raises(OutputError, match="the disk is full") as raised:
        quantize(str(source), small_disk, ["BF16"], name="m")
    assert raised.value.__notes__ == [RESUMABLE]
    assert {path.name for path in small_disk.iterdir()} == {"filler", STAGING_NAME}
    filler.unlink()
    calls: list[str] = []
    quantize(
        str(source), small_disk, ["BF16"], name="m", on_progress=lambda *call: calls.append(call[2])
    )
    assert {call.split()[0] for call in calls} == {"checking", "hashing"}, "no weight is read again"
    quantize(str(source), small_disk.parent / "whole", ["BF16"], name="m")
    assert contents(small_disk) == contents(small_disk.parent / "whole")
