"""Splitting by size: the files of `--split-max-size` are one model, and llama.cpp reads them so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.errors import InputError
from convert.gguf import read_gguf
from convert.job import convert
from convert.size import parse_size


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
        part = read_gguf(path)
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
    [("50GB", 50 * 10**9), ("1.5 GiB", 3 * 2**29), ("700MB", 7 * 10**8), ("1kB", 1000)],
)
def test_sizes_with_their_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["50", "50G", "GB", "-1GB", "0GB", "1e9B", "5 gb", "nan GB"])
def test_a_size_without_a_known_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)
