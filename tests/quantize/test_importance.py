"""The imatrix: both forms read alike, another model's refused, llama.cpp's bytes with it."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conformance import write_imatrix
from convert.errors import InputError
from convert.gguf import Field, GGUFTensor, encode_header
from convert.gguf_reader import read_gguf
from quantize.choice import Overrides
from quantize.importance import read_importance
from quantize.job import quantize
from tests.families import write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer
from tests.peers import llama_quantize


def write_legacy(path: Path, means: dict[str, np.ndarray], calls: int) -> None:
    """The old form, as llama-imatrix wrote it: means times calls."""
    out = struct.pack("<i", len(means))
    for name, values in means.items():
        data = (values.reshape(-1) * np.float32(calls)).astype("<f4")
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, data.size)
        out += data.tobytes()
    path.write_bytes(out + struct.pack("<ii", 3, 4) + b"text")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A checkpoint, the folder of its BF16 GGUF and imatrix, and the imatrix's means."""
    folder = tmp_path_factory.mktemp("importance")
    model = write_checkpoint(folder / "model", shape=Shape(layers=8))
    quantize(str(model), folder, ["BF16"], name="m")
    return model, folder, write_imatrix(folder / "m-BF16.gguf", folder / "imatrix.gguf")


@pytest.mark.parametrize("target", ["Q4_K_M", "Q2_K", "IQ4_XS", "IQ3_XXS", "Q4_0", "IQ2_M"])
def test_bytes_with_an_imatrix_equal_llama_cpp_s(
    tmp_path: Path, made: tuple[Path, Path, dict[str, np.ndarray]], target: str
) -> None:
    model, folder, means = made
    quantize(str(model), tmp_path, [target], name="m", imatrix=folder / "imatrix.gguf")
    code, log = llama_quantize(
        folder / "m-BF16.gguf", tmp_path / "theirs.gguf", target, imatrix=means
    )
    assert code == 0, log
    ours = tmp_path / f"m-{target}.gguf"
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    plain = folder / f"plain-{target}"
    if target in ("Q4_K_M", "Q2_K"):  # and the weights are really used
        quantize(str(model), plain, [target], name="m")
        assert (plain / ours.name).read_bytes() != ours.read_bytes()


def test_stacked_experts_have_weights_of_their_own(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    model = write_family(tmp_path / "m", "mixtral", vocabulary, vocab_size=320)
    quantize(str(model), tmp_path, ["BF16"], name="m")
    means = write_imatrix(tmp_path / "m-BF16.gguf", tmp_path / "imatrix.gguf")
    quantize(str(model), tmp_path, ["Q4_K_M"], name="m", imatrix=tmp_path / "imatrix.gguf")
    code, log = llama_quantize(
        tmp_path / "m-BF16.gguf", tmp_path / "theirs.gguf", "Q4_K_M", imatrix=means
    )
    assert code == 0, log
    ours = read_gguf(tmp_path / "m-Q4_K_M.gguf")
    assert ours.tensors["blk.0.ffn_up_exps.weight"].shape == (8, 512, 256)
    assert ours.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_both_forms_give_the_same_means(
    tmp_path: Path, made: tuple[Path, Path, dict[str, np.ndarray]]
) -> None:
    _, folder, means = made
    write_legacy(tmp_path / "old.dat", means, calls=8)  # a power of two: exact
    new, old = read_importance(folder / "imatrix.gguf"), read_importance(tmp_path / "old.dat")
    assert new.means.keys() == old.means.keys() == means.keys()
    assert old.chunks == 3
    for name, values in means.items():
        np.testing.assert_array_equal(new.means[name], values)
        np.testing.assert_array_equal(old.means[name], values)


def test_an_imatrix_of_another_model_is_refused_with_the_numbers(
    tmp_path: Path, made: tuple[Path, Path, dict[str, np.ndarray]]
) -> None:
    _, folder, _ = made
    other = write_checkpoint(tmp_path / "other", shape=Shape(hidden=512, intermediate=512))
    with pytest.raises(InputError, match=r"has 256 weights, the model needs\s+512"):
        quantize(str(other), tmp_path, ["Q4_K_M"], imatrix=folder / "imatrix.gguf")


@pytest.mark.parametrize("target", ["IQ2_XXS", "IQ1_S", "IQ3_XXS", "IQ3_XS", "IQ2_M", "Q2_K_S"])
def test_a_type_that_needs_an_imatrix_refuses_without_one(
    tmp_path: Path, made: tuple[Path, Path, dict[str, np.ndarray]], target: str
) -> None:
    with pytest.raises(InputError, match=r"needs an\s+imatrix"):
        quantize(str(made[0]), tmp_path / "out", [target])
    assert not (tmp_path / "out").exists()


def test_an_override_cannot_reach_a_quantizer_that_would_abort(
    tmp_path: Path, made: tuple[Path, Path, dict[str, np.ndarray]]
) -> None:
    with pytest.raises(InputError, match=r"needs an\s+imatrix"):
        quantize(str(made[0]), tmp_path, ["Q4_K_M"], overrides=Overrides(embedding_type="IQ2_XXS"))


@pytest.mark.parametrize(
    "data", [b"", b"\x01\x00\x00\x00", struct.pack("<ii", 1, 2**30), b"GGUF", b"\xff" * 64]
)
def test_a_file_that_is_no_imatrix_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"imatrix\.dat") as caught:
        read_importance(path)
    assert type(caught.value).__module__ == "convert.errors"


def test_an_entry_without_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    fields = [Field(key, "u32", 1) for key in ("imatrix.chunk_count", "imatrix.chunk_size")]
    fields.append(Field("imatrix.datasets", "[str]", ("x",)))
    tensors = [
        GGUFTensor("a.in_sum2", "F32", (1, 0), 0),
        GGUFTensor("a.counts", "F32", (1, 1), 0),
    ]
    path.write_bytes(encode_header(fields, tensors) + bytes(32))
    with pytest.raises(InputError, match=r"imatrix\.gguf: a\.in_sum2 is empty"):
        read_importance(path)


def test_the_sidecar_names_the_hash_and_not_the_path(
    tmp_path: Path, made: tuple[Path, Path, dict[str, np.ndarray]]
) -> None:
    model, folder, _ = made
    quantize(str(model), tmp_path, ["Q6_K"], name="m", imatrix=folder / "imatrix.gguf")
    text = (tmp_path / "m-Q6_K.gguf.hermes-quant.json").read_text()
    assert read_importance(folder / "imatrix.gguf").sha256 in text
    assert str(folder) not in text
