"""What is finished is kept, what is in the way is not replaced unasked, and sidecars tell why."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.errors import OutputError
from convert.staging import (
    SIDECAR_NAME,
    STAGING_NAME,
    entries,
    finished,
    read_sidecar,
    sidecar_path,
    staging_folder,
)
from quantize.job import quantize
from tests.convert.outputs import NAMES, TARGETS, assert_complete, listing
from tests.miniature import Shape, write_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("s") / "s", shape=Shape(layers=1))


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
        (left,) = entries(staging)
        left.unlink()
    after = {Path(name).name: size for name, (_, size) in listing(tmp_path).items()}
    assert {n: s for n, s in after.items() if not n.endswith(SIDECAR_NAME)} == {
        n: s for n, s in before.items() if not n.endswith(SIDECAR_NAME)
    }


def test_output_folders_that_cannot_be(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OutputError, match="cannot be written to"):
            quantize(str(source), out, TARGETS)


def test_a_side_file_is_part_of_what_an_output_is_made_from(tmp_path: Path, source: Path) -> None:
    copy = shutil.copytree(source, tmp_path / "copy")
    (copy / "LICENSE").write_text("old")
    quantize(str(copy), tmp_path / "out", TARGETS, name="m")
    (copy / "LICENSE").write_text("new")
    (gguf,) = quantize(str(copy), tmp_path / "out", ["Q8_0"], name="m").results
    assert gguf.kept
    with pytest.raises(OutputError, match="m-FP8_DYNAMIC: exists"):
        quantize(str(copy), tmp_path / "out", TARGETS, name="m")
