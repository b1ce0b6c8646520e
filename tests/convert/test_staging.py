"""Nothing half-written has a final name: not after a kill, on a full disk, or for a second run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.errors import OutputError
from convert.staging import (
    SIDECAR_NAME,
    STAGING_NAME,
    finished,
    hash_file,
    read_sidecar,
    sidecar_path,
    staging_folder,
)
from quantize.job import quantize
from tests.miniature import Shape, write_checkpoint

TARGETS = ["FP8_DYNAMIC", "Q8_0", "BF16"]
NAMES = {
    "m-FP8_DYNAMIC",
    "m-Q8_0.gguf",
    f"m-Q8_0.gguf.{SIDECAR_NAME}",
    "m-BF16.gguf",
    f"m-BF16.gguf.{SIDECAR_NAME}",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


def listing(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and size of every file."""
    return {
        str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_size)
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


def assert_complete(out: Path, *, described: bool = True) -> None:
    """Every artifact with a final name is whole and described by its sidecar, or by none."""
    for path in out.iterdir():
        if path.name.endswith(SIDECAR_NAME) or path.name == STAGING_NAME:
            continue
        sidecar = read_sidecar(sidecar_path(out, path.name, is_folder=path.is_dir()))
        if sidecar is None and not described:
            continue
        assert sidecar is not None, path
        assert sidecar.name == path.name
        for file in sidecar.files:
            assert (out / file.path).stat().st_size == file.size_bytes
            assert hash_file(out / file.path) == file.sha256, file.path
        if path.is_dir():
            found = {str(p.relative_to(out)) for p in path.rglob("*") if p.is_file()}
            assert found == {f.path for f in sidecar.files} | {f"{path.name}/{SIDECAR_NAME}"}


def test_finished_outputs_are_kept_untouched(tmp_path: Path, source: Path) -> None:
    first = quantize(str(source), tmp_path, TARGETS, name="m")
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    assert_complete(tmp_path)
    before = listing(tmp_path)
    second = quantize(str(source), tmp_path, TARGETS, name="m")
    assert listing(tmp_path) == before
    assert [result.kept for result in first.results] == [False] * 3
    assert [result.kept for result in second.results] == [True] * 3
    assert [r.artifact for r in second.results] == [r.artifact for r in first.results]


def test_only_what_is_missing_is_made(tmp_path: Path, source: Path) -> None:
    quantize(str(source), tmp_path, TARGETS, name="m")
    before = listing(tmp_path)
    (tmp_path / "m-Q8_0.gguf").unlink()
    job = quantize(str(source), tmp_path, TARGETS, name="m")
    assert [result.kept for result in job.results] == [True, False, True]
    after = listing(tmp_path)
    changed = {name for name in before if before[name][0] != after[name][0]}
    assert changed <= {"m-Q8_0.gguf", f"m-Q8_0.gguf.{SIDECAR_NAME}"}
    assert_complete(tmp_path)


def test_force_makes_even_finished_outputs_again(tmp_path: Path, source: Path) -> None:
    quantize(str(source), tmp_path, TARGETS, name="m")
    before = listing(tmp_path)
    job = quantize(str(source), tmp_path, TARGETS, name="m", force=True)
    assert not any(result.kept for result in job.results)
    after = listing(tmp_path)
    assert {n: size for n, (_, size) in after.items()} == {n: s for n, (_, s) in before.items()}
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    assert_complete(tmp_path)


@pytest.mark.parametrize("taken", ["m-Q8_0.gguf", "m-FP8_DYNAMIC"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_under_the_name_is_refused_then_replaced_by_force(
    tmp_path: Path, source: Path, taken: str, kind: str
) -> None:
    if kind == "file":
        (tmp_path / taken).write_text("mine")
    else:
        (tmp_path / taken / "deep").mkdir(parents=True)
        (tmp_path / taken / "deep" / "file").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(OutputError, match=rf"{taken}: exists .*--force"):
        quantize(str(source), tmp_path, TARGETS, name="m")
    assert listing(tmp_path) == before
    quantize(str(source), tmp_path, TARGETS, name="m", force=True)
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    assert_complete(tmp_path)


@pytest.mark.parametrize("what", ["source", "card", "version", "bytes"])
def test_what_was_made_from_something_else_is_not_kept(
    tmp_path: Path, source: Path, what: str
) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    out = tmp_path / "out"
    quantize(str(copy), out, TARGETS, name="m")
    if what == "source":
        os.utime(copy / "model.safetensors", ns=(7, 7))
    elif what == "card":
        (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    elif what == "version":
        path = out / f"m-Q8_0.gguf.{SIDECAR_NAME}"
        path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    else:
        os.truncate(out / "m-Q8_0.gguf", 1000)
    before = listing(out)
    with pytest.raises(OutputError, match="exists and was not made from this source"):
        quantize(str(copy), out, TARGETS, name="m")
    assert listing(out) == before


def test_the_sidecar_says_what_was_made_from_what_and_no_local_path(
    tmp_path: Path, source: Path
) -> None:
    quantize(str(source), tmp_path / "out", TARGETS, name="m")
    for path in (tmp_path / "out").rglob(f"*{SIDECAR_NAME}"):
        text = path.read_text()
        assert str(tmp_path) not in text
        assert str(source) not in text
        sidecar = json.loads(text)
        assert sidecar["schema_version"] == 1
        assert sidecar["recipe"] == {"name": "m"}
        assert sidecar["source"]["architecture"] == "LlamaForCausalLM"
        size = (source / "model.safetensors").stat().st_size
        assert sidecar["source"]["shards"] == {"model.safetensors": size}
        assert sidecar["numerics"]
        assert sidecar["tool"].startswith("hermes-quant ")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 1, "files": 3}', "\xff"])
def test_a_sidecar_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    path = sidecar_path(tmp_path, "x.gguf", is_folder=False)
    path.write_text(text, encoding="latin-1")
    assert read_sidecar(path) is None
    assert finished(tmp_path, "x.gguf", is_folder=False, fingerprint="") is None


def test_the_source_may_lie_in_the_output_folder(tmp_path: Path, source: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    quantize(str(copy), copy, TARGETS, name="m")
    again = quantize(str(copy), copy, TARGETS, name="m")
    assert all(result.kept for result in again.results)
    assert not any(p.name.endswith("gguf") for p in (copy / "m-FP8_DYNAMIC").iterdir())


def test_a_second_run_on_one_folder_is_refused(tmp_path: Path, source: Path) -> None:
    with staging_folder(tmp_path):
        with pytest.raises(OutputError, match="another run is writing here"):
            quantize(str(source), tmp_path, TARGETS, name="m")
        assert (tmp_path / STAGING_NAME).is_dir()
    quantize(str(source), tmp_path, TARGETS, name="m")
    assert_complete(tmp_path)


def test_what_appears_between_the_look_and_the_lock_is_not_replaced(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def late(out: Path) -> Iterator[Path]:
        (out / "m-BF16.gguf").write_text("mine")  # another run ends here
        with staging_folder(out) as folder:
            yield folder

    monkeypatch.setattr("convert.staging.staging_folder", late)
    with pytest.raises(OutputError, match=r"m-BF16\.gguf: exists"):
        quantize(str(source), tmp_path, TARGETS, name="m")
    assert (tmp_path / "m-BF16.gguf").read_text() == "mine"


@pytest.mark.parametrize("is_folder", [False, True])
def test_an_old_output_that_a_killed_run_moved_aside_comes_back(
    tmp_path: Path, source: Path, is_folder: bool
) -> None:
    name, target = ("m-FP8_DYNAMIC", "FP8_DYNAMIC") if is_folder else ("m-BF16.gguf", "BF16")
    quantize(str(source), tmp_path, [target], name="m")
    before = {Path(name).name: size for name, (_, size) in listing(tmp_path).items()}
    staging = tmp_path / STAGING_NAME
    staging.mkdir()
    (tmp_path / name).rename(staging / f"{name}.replaced")
    (staging / "m-Q8_0.gguf").write_text("half")
    with staging_folder(tmp_path):
        assert (tmp_path / name).exists()
        assert not any(staging.iterdir())
    after = {Path(name).name: size for name, (_, size) in listing(tmp_path).items()}
    assert {n: s for n, s in after.items() if not n.endswith(SIDECAR_NAME)} == {
        n: s for n, s in before.items() if not n.endswith(SIDECAR_NAME)
    }


def test_output_folders_that_cannot_be(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OutputError, match="cannot be written to"):
            quantize(str(source), out, TARGETS)


COMMAND = [sys.executable, "-m", "hermes_quant", "quantize"]


def command(source: Path, out: Path, *more: str) -> list[str]:
    targets = [word for target in TARGETS for word in ("--to", target)]
    return [*COMMAND, str(source), "--out", str(out), "--name", "m", *targets, *more]


def run_for(arguments: list[str], out: Path, seconds: float | None) -> tuple[bool, float]:
    """Kill -9 the command so long after its staging folder appears; was it, and how long it ran."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / STAGING_NAME).is_dir():
        time.sleep(0.0005)
    begin = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return process.wait() == -signal.SIGKILL, time.monotonic() - begin


@pytest.mark.parametrize("force", [False, True])
def test_kill_9_leaves_only_complete_artifacts(tmp_path: Path, source: Path, force: bool) -> None:
    old = tmp_path / "old"
    quantize(str(source), old, TARGETS, name="m")
    killed, whole = run_for(command(source, tmp_path / "whole"), tmp_path / "whole", None)
    assert not killed
    kills = 0
    for fraction in (0, 0.2, 0.4, 0.6, 0.8, 0.95):
        out = tmp_path / f"out-{fraction}"
        if force:
            shutil.copytree(old, out)
        arguments = command(source, out, *["--force"] * force)
        kills += run_for(arguments, out, fraction * whole)[0]
        assert_complete(out)
        job = quantize(str(source), out, TARGETS, name="m")
        assert {path.name for path in out.iterdir()} == NAMES
        assert_complete(out)
        assert not force or all(result.kept for result in job.results)
        for name in NAMES - {path.name for path in out.iterdir() if path.is_dir()}:
            assert (out / name).read_bytes() == (old / name).read_bytes()
    assert kills, "the command was always faster than the kill"


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
            assert {path.name for path in out.iterdir()} == NAMES
            assert_complete(out)
        quantize(str(source), out, TARGETS, name="m", force=force)
        assert {path.name for path in out.iterdir()} == NAMES
        assert_complete(out)


def test_a_side_file_is_part_of_what_an_output_is_made_from(tmp_path: Path, source: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    (copy / "LICENSE").write_text("old")
    quantize(str(copy), tmp_path / "out", TARGETS, name="m")
    (copy / "LICENSE").write_text("new")
    (gguf,) = quantize(str(copy), tmp_path / "out", ["Q8_0"], name="m").results
    assert gguf.kept
    with pytest.raises(OutputError, match="m-FP8_DYNAMIC: exists"):
        quantize(str(copy), tmp_path / "out", TARGETS, name="m")


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


def test_a_full_disk_is_known_beforehand(small_disk: Path, source: Path) -> None:
    with pytest.raises(OutputError, match=r"[\d,]+ bytes are needed and [\d,]+ are free"):
        quantize(str(source), small_disk, ["BF16", "F32"], name="m")
    assert not any(small_disk.iterdir())


def test_a_disk_that_fills_up_while_writing(
    small_disk: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(str(source), small_disk, ["Q8_0"], name="m")
    monkeypatch.setattr("convert.run._check_space", lambda *_: None)  # somebody else wrote since
    with pytest.raises(OutputError, match="the disk is full; nothing was left behind"):
        quantize(str(source), small_disk, ["BF16", "F32"], name="m")
    assert_complete(small_disk)
    assert {path.name for path in small_disk.iterdir()} == {
        "m-Q8_0.gguf",
        f"m-Q8_0.gguf.{SIDECAR_NAME}",
    }


def test_a_disk_with_no_room_for_the_sidecar(small_disk: Path, source: Path) -> None:
    size = quantize(str(source), small_disk, ["BF16"], name="m", dry_run=True).disk_bytes
    usage = shutil.disk_usage(small_disk)
    filler = small_disk / "filler"
    page = 4096
    filler.write_bytes(bytes((usage.free // page - -(-size // page)) * page))
    with pytest.raises(OutputError, match="the disk is full"):
        quantize(str(source), small_disk, ["BF16"], name="m")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
