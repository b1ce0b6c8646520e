"""GGUF weights encoded again: our own and llama.cpp's files are equal, mixed-up ones are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from convert.checkpoint import Checkpoint
from convert.gguf_reader import read_gguf
from quantize.ggml import Ggml
from quantize.importance import read_importance
from quantize.job import quantize
from tests.families import CONFIGS, write_family
from tests.verify.conftest import evidence
from tests.verify.damage import Edit, rewrite_gguf
from verify.check import State
from verify.evidence import Reference
from verify.gguf_weights import check_gguf_weights, measure_gguf

Q, DOWN = "blk.0.attn_q.weight", "blk.1.ffn_down.weight"


@pytest.mark.parametrize(
    "target", ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K"]
)
def test_our_own_files_are_equal_byte_for_byte(
    reference: Reference, tmp_path: Path, target: str
) -> None:
    quantize(str(reference.folder), tmp_path, [target], name="m")
    outcome = check_gguf_weights(evidence(reference, tmp_path / f"m-{target}.gguf"))
    numbers = outcome.verdict.numbers
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert numbers["tensors"] == numbers["same_bytes"]
    assert numbers["wrong"] == 0
    assert not outcome.findings


def test_a_split_file_is_read_from_all_its_parts(reference: Reference, tmp_path: Path) -> None:
    quantize(str(reference.folder), tmp_path, ["Q8_0"], name="m", max_file_bytes=300_000)
    outcome = check_gguf_weights(evidence(reference, tmp_path / "m-Q8_0"))
    assert outcome.verdict.state is State.PASS
    assert outcome.verdict.numbers["same_bytes"] == outcome.verdict.numbers["tensors"]


def write_imatrix(path: Path, file: Path) -> Path:
    """An importance matrix with wildly uneven weights for every matrix of `file`."""
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["d"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 1)
    for tensor in read_gguf(file).tensors.values():
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            sums = rng.lognormal(0, 1, tensor.shape[-1]).astype(np.float32)[None]
            writer.add_tensor(f"{tensor.name}.in_sum2", sums)
            writer.add_tensor(f"{tensor.name}.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_with_its_imatrix_a_file_is_equal_without_it_only_close(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    imatrix = write_imatrix(tmp_path / "i.gguf", artifacts["F32"])
    quantize(str(reference.folder), tmp_path, ["Q4_K_M"], name="m", imatrix=imatrix)
    given = evidence(reference, tmp_path / "m-Q4_K_M.gguf")
    equal = check_gguf_weights(given, read_importance(imatrix))
    assert equal.verdict.numbers["same_bytes"] == equal.verdict.numbers["tensors"]
    close = check_gguf_weights(given)
    assert close.verdict.state is State.PASS, close.findings
    assert close.verdict.numbers["same_bytes"] != close.verdict.numbers["tensors"]
    assert close.findings[0].message.startswith("other bytes")


def test_a_type_that_needs_an_imatrix_is_not_guessed_at(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    imatrix = write_imatrix(tmp_path / "i.gguf", artifacts["F32"])
    quantize(str(reference.folder), tmp_path, ["IQ2_XS"], name="m", imatrix=imatrix)
    given = evidence(reference, tmp_path / "m-IQ2_XS.gguf")
    assert check_gguf_weights(given, read_importance(imatrix)).verdict.state is State.PASS
    outcome = check_gguf_weights(given)
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "--imatrix" in outcome.findings[-1].message


def test_a_block_of_any_height_gives_the_same_numbers(
    reference: Reference, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = read_gguf(artifacts["Q8_0"])
    whole = list(measure_gguf(reference.checkpoint, damaged))
    monkeypatch.setattr("verify.gguf_rows.BLOCK_VALUES", 1)
    for a, b in zip(whole, measure_gguf(reference.checkpoint, damaged), strict=True):
        assert (a.name, a.same_bytes) == (b.name, b.same_bytes)
        assert a.error == pytest.approx(b.error)


def swap(a: str, b: str) -> Edit:
    def edit(tensors: dict[str, Any]) -> None:
        tensors[a], tensors[b] = tensors[b], tensors[a]

    return edit


def change(name: str, edit: Any) -> Edit:
    """Edit the bytes of one tensor, (rows, row bytes)."""

    def apply(tensors: dict[str, Any]) -> None:
        data, kind = tensors[name]
        edit(data)
        tensors[name] = (data, kind)

    return apply


def unpermute(data: np.ndarray) -> None:
    rows = data.reshape(-1, 32 // 2, 2, data.shape[-1]).swapaxes(1, 2)
    data[:] = rows.reshape(data.shape).copy()


def double_scale(data: np.ndarray) -> None:
    data[7, :2] = (data[7, :2].view(np.float16) * 2).view(np.uint8)


def zero_scale(data: np.ndarray) -> None:
    data[7, :2] = 0


def not_a_number(data: np.ndarray) -> None:
    data[3, :2] = np.array([np.nan], np.float16).view(np.uint8)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (swap(DOWN, "blk.0.ffn_down.weight"), {DOWN, "blk.0.ffn_down.weight"}),
        (change(Q, unpermute), {Q}),
        (change(DOWN, double_scale), {DOWN}),
        (change(DOWN, not_a_number), {DOWN}),
    ],
)
def test_what_got_mixed_up_is_named(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, edit: Edit, names: set[str]
) -> None:
    path = rewrite_gguf(artifacts["Q8_0"], tmp_path / "broken.gguf", tensors=edit)
    outcome = check_gguf_weights(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert {finding.subject for finding in outcome.findings} == names
    assert outcome.verdict.numbers["wrong"] == len(names)


def test_one_row_of_many_is_named(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = rewrite_gguf(
        artifacts["Q8_0"], tmp_path / "broken.gguf", tensors=change(DOWN, zero_scale)
    )
    (finding,) = check_gguf_weights(evidence(reference, path)).findings
    assert "row 7 " in finding.message


def test_the_error_is_that_of_the_decoded_values(
    reference: Reference, artifacts: dict[str, Path]
) -> None:
    file = read_gguf(artifacts["Q8_0"])
    found = {m.name: m for m in measure_gguf(reference.checkpoint, file)}
    source = reference.checkpoint
    info = source.tensors["model.layers.1.mlp.down_proj.weight"]
    values = source.read_rows(info, 0, info.rows).float32().astype(np.float64)
    stored = np.frombuffer(file.read(DOWN), dtype=np.uint8)
    decoded = Ggml("Q8_0").decode([stored], values.shape)
    expected = np.linalg.norm(decoded - values) / np.linalg.norm(values)
    assert found[DOWN].error == pytest.approx(expected)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind in ("mixtral", "qwen3")])
def test_stacked_experts_and_other_families(
    reference: Reference, tmp_path: Path, kind: str
) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (vocabulary / name).write_bytes((reference.folder / name).read_bytes())
    folder = write_family(tmp_path / kind, kind, vocabulary, vocab_size=320)
    quantize(str(folder), tmp_path, ["Q4_K_M"], name="m")
    with Checkpoint.open(folder) as checkpoint:
        given = evidence(replace(reference, checkpoint=checkpoint), tmp_path / "m-Q4_K_M.gguf")
        outcome = check_gguf_weights(given)
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["same_bytes"] == outcome.verdict.numbers["tensors"]


def name_imatrix(path: Path, out: Path, **stated: Any) -> Path:
    """A GGUF whose header names an imatrix, as llama-quantize writes it."""
    fields = {f"quantize.imatrix.{key}": value for key, value in stated.items()}
    return rewrite_gguf(path, out, fields=lambda values: values.update(fields))


NAMED = {"file": "/models/secret/i.gguf", "entries_count": 14, "chunks_count": 1}


@pytest.fixture(scope="module")
def weighted(
    reference: Reference, artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with i.gguf, an imatrix of 14 entries, and m-Q4_K_M.gguf, which was made with it."""
    out = tmp_path_factory.mktemp("weighted")
    imatrix = write_imatrix(out / "i.gguf", artifacts["F32"])
    quantize(str(reference.folder), out, ["Q4_K_M"], name="m", imatrix=imatrix)
    return out


def test_an_imatrix_that_is_named_and_not_given_is_told(
    reference: Reference, weighted: Path, tmp_path: Path
) -> None:
    path = name_imatrix(weighted / "m-Q4_K_M.gguf", tmp_path / "n.gguf", **NAMED)
    outcome = check_gguf_weights(evidence(reference, path))
    assert outcome.verdict.state is State.PASS
    assert "it names the imatrix 'i.gguf' (14 entries, 1 chunk), which was not given" in (
        outcome.verdict.reason
    )
    assert outcome.findings[0].subject == "quantize.imatrix.file"
    assert outcome.verdict.numbers["imatrix"] == "named, not given"
    assert "secret" not in str(outcome)


@pytest.mark.parametrize(
    ("changed", "told", "used"),
    [
        ({}, False, True),
        ({"file": "elsewhere/j.gguf"}, True, True),
        ({"file": "/" + "long/" * 25 + "i"}, False, True),
        ({"entries_count": 13}, True, False),
        ({"chunks_count": 125}, True, False),
    ],
)
def test_an_imatrix_other_than_the_one_named_is_told_and_by_its_counts_not_used(
    reference: Reference,
    weighted: Path,
    tmp_path: Path,
    changed: dict[str, Any],
    told: bool,
    used: bool,
) -> None:
    path = name_imatrix(weighted / "m-Q4_K_M.gguf", tmp_path / "n.gguf", **NAMED | changed)
    outcome = check_gguf_weights(evidence(reference, path), read_importance(weighted / "i.gguf"))
    numbers = outcome.verdict.numbers
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert (numbers["same_bytes"] == numbers["tensors"]) is used
    assert ("it names the imatrix" in outcome.verdict.reason) is told
    assert numbers["imatrix"] == ("given" if used else "named, another given")


def test_an_imatrix_of_the_same_name_and_counts_with_other_values_is_told_by_the_bytes(
    reference: Reference, weighted: Path, tmp_path: Path
) -> None:
    path = name_imatrix(weighted / "m-Q4_K_M.gguf", tmp_path / "n.gguf", **NAMED)
    given = read_importance(weighted / "i.gguf")
    other = replace(given, means={name: v[:, ::-1].copy() for name, v in given.means.items()})
    outcome = check_gguf_weights(evidence(reference, path), other)
    assert outcome.verdict.reason.endswith(
        "the imatrix given, 'i.gguf', may not be the one it was made with"
    )
    assert outcome.findings[0].message.startswith(("other bytes", "relative error"))


def test_a_type_that_needs_the_imatrix_named_is_undecided_with_another(
    reference: Reference, weighted: Path, tmp_path: Path
) -> None:
    imatrix = weighted / "i.gguf"
    quantize(str(reference.folder), tmp_path, ["IQ2_XS"], name="m", imatrix=imatrix)
    stated = {**NAMED, "chunks_count": 125}
    path = name_imatrix(tmp_path / "m-IQ2_XS.gguf", tmp_path / "n.gguf", **stated)
    outcome = check_gguf_weights(evidence(reference, path), read_importance(imatrix))
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "the one given is another, 'i.gguf' (14 entries, 1 chunk)" in outcome.verdict.reason


@pytest.mark.parametrize("target", ["Q8_0", "Q4_K_M", "Q4_0"])
def test_one_imatrix_for_several_files_is_used_on_those_that_were_made_with_it(
    reference: Reference, weighted: Path, tmp_path: Path, target: str
) -> None:
    given = read_importance(weighted / "i.gguf")
    quantize(str(reference.folder), tmp_path, [target], name="plain")
    for path in (tmp_path / f"plain-{target}.gguf", weighted / "m-Q4_K_M.gguf"):
        numbers = check_gguf_weights(evidence(reference, path), given).verdict.numbers
        assert numbers["same_bytes"] == numbers["tensors"], path.name


def test_an_imatrix_of_another_model_is_not_used(
    reference: Reference, weighted: Path, tmp_path: Path
) -> None:
    given = read_importance(weighted / "i.gguf")
    narrow = replace(given, means={name: v[:, :32] for name, v in given.means.items()})
    quantize(str(reference.folder), tmp_path, ["Q4_K_M"], name="plain")
    outcome = check_gguf_weights(evidence(reference, tmp_path / "plain-Q4_K_M.gguf"), narrow)
    assert outcome.verdict.numbers["imatrix"] == "given, not what the file was made with"
    assert outcome.verdict.numbers["same_bytes"] == outcome.verdict.numbers["tensors"]
