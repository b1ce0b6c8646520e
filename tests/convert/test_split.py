"""Splitting by size: the files of `--split-max-size` are one model, and llama.cpp reads them so."""

from __future__ import annotations

import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from convert.errors import CheckpointError, InputError, OutputError
from convert.gguf import Field, encode_header
from convert.gguf_reader import read_gguf, read_gguf_file
from convert.inspection import inspect
from convert.job import convert
from convert.merge import Merged, merge
from convert.size import parse_size
from convert.staging import STAGING_NAME


def test_every_file_stays_under_the_size_and_together_they_hold_all(
    tmp_path: Path, miniature: Path
) -> None:
    convert(str(miniature), tmp_path, ["BF16"], name="m")
    convert(str(miniature), tmp_path / "split", ["BF16"], name="m", max_file_bytes=600_000)
    whole = read_gguf(tmp_path / "m-BF16.gguf")
    shards = sorted((tmp_path / "split" / "m-BF16").glob("*.gguf"))
    assert len(shards) > 2
    names: list[str] = []
    for number, path in enumerate(shards):
        part = read_gguf_file(path)
        assert path.name == f"m-BF16-{number + 1:05d}-of-{len(shards):05d}.gguf"
        assert part.fields["split.no"] == number
        assert part.fields["split.count"] == len(shards)
        assert part.fields["split.tensors.count"] == len(whole.tensors)
        assert ("general.architecture" in part.fields) == (number == 0)
        assert sum(t.size_bytes for t in part.tensors.values()) <= 600_000
        assert all(part.read(name) == whole.read(name) for name in part.tensors)
        names += part.tensors
    assert names == list(whole.tensors)


def test_llama_cpp_loads_the_first_file_as_the_whole_model(tmp_path: Path, miniature: Path) -> None:
    from llama_cpp import Llama

    convert(str(miniature), tmp_path, ["BF16"], name="m")
    convert(str(miniature), tmp_path / "split", ["BF16"], name="m", max_file_bytes=600_000)
    first = sorted((tmp_path / "split" / "m-BF16").glob("*.gguf"))[0]
    scores = []
    for path in (tmp_path / "m-BF16.gguf", first):
        llama = Llama(str(path), n_ctx=32, n_threads=1, verbose=False, logits_all=True)
        llama.eval([257, 1, 2, 3])
        scores.append(np.array(llama.scores[:4]))
        llama.close()
    np.testing.assert_array_equal(*scores)


def test_a_tensor_larger_than_a_file_is_named(tmp_path: Path, miniature: Path) -> None:
    with pytest.raises(InputError, match=r"output\.weight.*--split-max-size"):
        convert(str(miniature), tmp_path, ["BF16"], max_file_bytes=1000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("700MB", 7 * 10**8),
        ("1kB", 1000),
        ("4.1GB", 41 * 10**8),
        ("1" + "0" * 20 + "B", 10**20),
    ],
)
def test_sizes_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["50", "50G", "GB", "-1GB", "0GB", "1e9B", "5 gb", "nan GB", "9" * 99 + "GB"]
)
def test_a_size_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)


def split(model: Path, folder: Path, size: int = 600_000) -> list[Path]:
    convert(str(model), folder, ["BF16"], name="m", max_file_bytes=size)
    return sorted((folder / "m-BF16").glob("*.gguf"))


def test_merging_gives_back_the_file_that_was_never_split(tmp_path: Path, miniature: Path) -> None:
    convert(str(miniature), tmp_path, ["BF16"], name="m")
    first, *rest = split(miniature, tmp_path / "s")
    merged = merge(first, tmp_path / "merged.gguf")
    whole = (tmp_path / "m-BF16.gguf").read_bytes()
    assert (tmp_path / "merged.gguf").read_bytes() == whole
    assert merged == Merged(len(whole), sha256(whole).hexdigest(), 1 + len(rest))
    assert not (tmp_path / STAGING_NAME).exists()


def test_a_split_model_is_read_as_one(tmp_path: Path, miniature: Path) -> None:
    convert(str(miniature), tmp_path, ["BF16"], name="m")
    whole, first = inspect(str(tmp_path / "m-BF16.gguf")), split(miniature, tmp_path / "s")[0]
    found = inspect(str(first))
    assert found.files > 2
    assert found.size_bytes == sum(path.stat().st_size for path in first.parent.glob("*.gguf"))
    assert replace(found, files=1, size_bytes=whole.size_bytes) == whole


def test_merge_refuses_to_lose_anything(tmp_path: Path, miniature: Path) -> None:
    first, second, *_ = split(miniature, tmp_path / "s")
    (tmp_path / "there.gguf").write_text("precious")
    with pytest.raises(OutputError, match=r"there\.gguf: exists.*--force"):
        merge(first, tmp_path / "there.gguf")
    assert (tmp_path / "there.gguf").read_text() == "precious"
    merge(first, tmp_path / "there.gguf", force=True)
    with pytest.raises(InputError, match="is not split"):
        merge(tmp_path / "there.gguf", tmp_path / "again.gguf")
    with pytest.raises(CheckpointError, match=r"give the first.*m-BF16-00001-of-0000\d\.gguf"):
        merge(second, tmp_path / "again.gguf")
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"{second.name}: cannot be read"):
        merge(first, tmp_path / "again.gguf")
    assert not (tmp_path / "again.gguf").exists()


def test_a_part_that_vanishes_while_it_is_merged_is_named(
    tmp_path: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = split(miniature, tmp_path / "s")
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: second.unlink())
    with pytest.raises(CheckpointError, match=rf"{second.name}: cannot be read: No such file"):
        merge(first, tmp_path / "merged.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path, miniature: Path) -> None:
    first, second, third, *_ = split(miniature, tmp_path / "s")
    kept = second.read_bytes()
    second.write_bytes(third.read_bytes())
    with pytest.raises(CheckpointError, match=r"says it is part 2 of \d, its name says 1"):
        read_gguf(first)
    parts = read_gguf_file(first), read_gguf_file(third)
    second.write_bytes(kept)
    fields = [Field("split.no", "u16", 1), *(f for f in parts[1].typed if f.key != "split.no")]
    again = [replace(t, offset=0) for t in list(parts[0].tensors.values())[:1]]
    second.write_bytes(encode_header(fields, again) + bytes(again[0].size_bytes))
    with pytest.raises(CheckpointError, match=rf"is in {first.name} too"):
        read_gguf(first)
    second.write_bytes(encode_header(fields, []))
    with pytest.raises(CheckpointError, match=r"split.tensors.count is \d+, the \d files hold \d+"):
        read_gguf(first)
