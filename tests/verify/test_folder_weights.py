"""Weights of folders in every scheme: undamaged ones pass whoever made them, damage is named."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from convert.checkpoint import Checkpoint
from quantize.codes import pack_words, unpack_words
from quantize.compressed_table import TARGETS
from quantize.job import quantize
from tests.families import write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer
from tests.verify.conftest import evidence
from tests.verify.lint.checkpoints import (
    DATA_FREE,
    Tensors,
    change_quantization,
    change_tensors,
    group,
    make,
)
from tests.verify.test_verify import right, scripted, write_gate, write_suite
from verify import source_rows
from verify.artifact import Kind
from verify.check import Outcome, State
from verify.evidence import Reference
from verify.quantization import read_quantization
from verify.report.terminal import print_report
from verify.stored_matrix import open_matrix
from verify.verify import verify
from verify.weights import check_weights, compare_folder, not_compared

LAYER = "model.layers.0."
Q, DOWN = f"{LAYER}self_attn.q_proj", f"{LAYER}mlp.down_proj"
E4M3 = torch.float8_e4m3fn


def beside(reference: Reference, folder: Path) -> Reference:
    """The reference with another checkpoint in its place."""
    return replace(reference, checkpoint=Checkpoint.open(folder))


def named(outcome: Outcome) -> dict[str, str]:
    assert outcome.verdict.state is State.FAIL
    return {finding.subject: finding.message for finding in outcome.findings}


@pytest.mark.parametrize("numerics", ["ct-eager", "fp32-scales"])
@pytest.mark.parametrize("target", TARGETS)
def test_our_own_folders_have_the_bytes_of_encoding_them_again(
    reference: Reference, tmp_path: Path, target: str, numerics: str
) -> None:
    quantize(str(reference.folder), tmp_path, [target], name="m", numerics=numerics)
    outcome = check_weights(evidence(reference, tmp_path / f"m-{target}"))
    numbers = outcome.verdict.numbers
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert (numbers["matrices"], numbers["copies"], numbers["not_compared"]) == (14, 7, 0)
    if target.startswith("FP8"):
        assert numbers["out_of_bounds"] == 0
    elif numerics == "ct-eager" or not target.startswith(("NVFP4", "MXFP4")):
        assert numbers["same_bytes"] == 14
        assert not outcome.findings


@pytest.mark.parametrize("scheme", [*DATA_FREE, "NVFP4", "FP8_KV", "NARROW", "SHARDED"])
def test_other_peoples_folders_pass(reference: Reference, tmp_path: Path, scheme: str) -> None:
    made = make(scheme, tmp_path)
    outcome = check_weights(evidence(beside(reference, tmp_path / "source"), made))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["matrices"] == 14
    assert float(str(outcome.verdict.numbers["worst_ratio"])) < 1.01


def test_a_mixture_of_experts_in_four_bits(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "vocabulary").mkdir()
    write_tokenizer(tmp_path / "vocabulary")
    source = write_family(tmp_path / "s", "mixtral", tmp_path / "vocabulary", vocab_size=320)
    quantize(str(source), tmp_path, ["W4A16"], name="m")
    outcome = check_weights(evidence(beside(reference, source), tmp_path / "m-W4A16"))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["matrices"] == outcome.verdict.numbers["same_bytes"]


def test_other_rounding_of_the_quotients_passes_by_its_error(
    reference: Reference, tmp_path: Path
) -> None:
    quantize(str(reference.folder), tmp_path, ["W8A8"], name="m", numerics="ct-sm90")
    outcome = check_weights(evidence(reference, tmp_path / "m-W8A8"))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert int(str(outcome.verdict.numbers["same_bytes"])) < 14
    assert "other bytes than our own encoding" in outcome.verdict.reason
    assert outcome.findings[0].message.startswith("other bytes; relative error")


def test_sixteen_bits_are_the_sources(reference: Reference) -> None:
    outcome = check_weights(evidence(reference, reference.folder))
    assert outcome.verdict.state is State.PASS
    assert outcome.verdict.numbers["copies"] == 21
    assert outcome.verdict.reason == "21 tensors are the source's to the bit"


def clipped(share: float, source: Path) -> Callable[[Tensors], None]:
    """FP8 whose scales leave out the largest magnitudes, as those by squared error do."""
    weights = load_file(source / "model.safetensors")

    def edit(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("down_proj.weight")]:
            w = weights[name].float()
            scale = (share * w.abs().amax(dim=-1, keepdim=True) / 448).bfloat16()
            tensors[f"{name}_scale"] = scale
            tensors[name] = (w / scale.float()).clamp(-448, 448).to(E4M3)

    return edit


def test_clipped_fp8_of_others_goes_by_its_error(reference: Reference, tmp_path: Path) -> None:
    """Where rows are long, a clipped value or two in each weigh little."""
    source = write_checkpoint(tmp_path / "source", shape=Shape(intermediate=8192, layers=1))
    quantize(str(source), tmp_path, ["FP8_DYNAMIC"], name="m")
    folder = tmp_path / "m-FP8_DYNAMIC"
    change_tensors(folder, clipped(0.93, source))
    outcome = check_weights(evidence(beside(reference, source), folder))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert int(str(outcome.verdict.numbers["out_of_bounds"])) > 100
    assert "are out of bounds" in outcome.findings[0].message
    change_tensors(folder, clipped(0.5, source))
    messages = named(check_weights(evidence(beside(reference, source), folder)))
    assert "times that of encoding it again (limit 1.25)" in messages[f"{DOWN}.weight"]


@pytest.mark.parametrize("actorder", [None, "static"])
def test_fp8_out_of_bounds_under_the_scales_of_rounding_is_damage_or_gptq(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, actorder: str | None
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "moved"))
    moved = np.random.default_rng(0).random((256, 256)) < 0.1

    def edit(tensors: Tensors) -> None:
        codes = tensors[f"{Q}.weight"].view(torch.uint8).numpy()
        small = moved & (codes & 0x7F < 0x7D)
        tensors[f"{Q}.weight"] = torch.from_numpy(codes + small.astype(np.uint8)).view(E4M3)

    change_tensors(folder, edit)
    change_quantization(folder, lambda q: group(q)["weights"].update(actorder=actorder))
    outcome = check_weights(evidence(reference, folder))
    assert outcome.verdict.state is (State.PASS if actorder else State.FAIL), outcome.findings
    assert [finding.subject for finding in outcome.findings] == [f"{Q}.weight"]


def step_up(share: float) -> Callable[[Tensors], None]:
    """Codes of a matrix moved by one where a coin says so, as GPTQ moves them."""
    random = np.random.default_rng(0)

    def edit(tensors: Tensors) -> None:
        words = tensors[f"{Q}.weight_packed"].numpy().view(np.uint32)
        codes = unpack_words(words, 4).astype(np.int16)
        moved = codes + (random.random(codes.shape) < share) * random.choice([-1, 1], codes.shape)
        packed = pack_words(np.clip(moved, 0, 15).astype(np.uint8), 4).view(np.int32)
        tensors[f"{Q}.weight_packed"] = torch.from_numpy(packed.copy())

    return edit


@pytest.mark.parametrize(
    ("actorder", "share", "scale", "state"),
    [
        (None, 0.2, 1.0, State.PASS),
        ("static", 0.2, 1.0, State.PASS),
        (None, 1.0, 1.0, State.FAIL),
        (None, 0.2, 1.01, State.FAIL),
        ("static", 0.2, 1.01, State.NOT_ENOUGH_EVIDENCE),
        ("static", 1.0, 1.01, State.FAIL),
    ],
)
def test_more_error_than_rounding_leaves_needs_the_scales_of_rounding(
    reference: Reference,
    artifacts: dict[str, Path],
    tmp_path: Path,
    actorder: str | None,
    share: float,
    scale: float,
    state: State,
) -> None:
    folder = Path(shutil.copytree(artifacts["W4A16"], tmp_path / "gptq"))
    change_tensors(folder, step_up(share))
    name = f"{Q}.weight_scale"
    change_tensors(folder, lambda t: t.update({name: (t[name].float() * scale).bfloat16()}))
    change_quantization(folder, lambda q: group(q)["weights"].update(actorder=actorder))
    outcome = check_weights(evidence(reference, folder))
    assert outcome.verdict.state is state, outcome.findings
    assert [finding.subject for finding in outcome.findings] == [f"{Q}.weight"]
    assert outcome.verdict.numbers["not_compared"] == (state is State.NOT_ENOUGH_EVIDENCE)


@pytest.mark.parametrize("target", ["W8A8", "W8A16", "W4A16", "NVFP4A16", "MXFP4"])
def test_every_scheme_has_swapped_matrices_named(
    reference: Reference, tmp_path: Path, target: str
) -> None:
    quantize(str(reference.folder), tmp_path, [target], name="m")
    other = Q.replace("layers.0", "layers.1")

    def swap(tensors: Tensors) -> None:
        parts = [name.removeprefix(Q) for name in tensors if name.startswith(f"{Q}.")]
        for part in parts:
            tensors[Q + part], tensors[other + part] = tensors[other + part], tensors[Q + part]

    change_tensors(tmp_path / f"m-{target}", swap)
    messages = named(check_weights(evidence(reference, tmp_path / f"m-{target}")))
    assert messages.keys() == {f"{Q}.weight", f"{other}.weight"}


def test_a_shifted_row_of_zero_points_is_named(reference: Reference, tmp_path: Path) -> None:
    made = make("W4A16_ASYM", tmp_path)

    def shift(tensors: Tensors) -> None:
        name = f"{Q}.weight_zero_point"
        tensors[name] = tensors[name].roll(1, dims=0)

    change_tensors(made, shift)
    outcome = check_weights(evidence(beside(reference, tmp_path / "source"), made))
    assert named(outcome).keys() == {f"{Q}.weight"}


def test_forms_that_are_not_read_leave_the_check_undecided_and_are_named(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["W4A16"], tmp_path / "two"))
    change_quantization(folder, lambda q: group(q)["weights"].update(num_bits=2))
    outcome = check_weights(evidence(reference, folder))
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.verdict.numbers["not_compared"] == 14
    assert outcome.verdict.reason.startswith("14 tensors cannot be compared with the source's")
    assert "packed integers of 2 bits: not read here" in outcome.findings[0].message
    assert not_compared([outcome]) == ("weights of 14 tensors",)


def test_the_report_names_what_was_not_compared(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Four bits, each in a byte: nothing here encodes them."""
    folder = Path(shutil.copytree(artifacts["W8A8"], tmp_path / "w4a8"))
    change_quantization(folder, lambda q: group(q)["weights"].update(num_bits=4))
    report = verify(
        reference_folder,
        [folder],
        suite=write_suite(tmp_path, 4),
        gate=write_gate(tmp_path),
        open_engine=scripted(reference_folder, dict.fromkeys(Kind, right)),
    )
    (found,) = report.artifacts
    assert found.not_checked == ("weights of 14 tensors",)
    (outcome,) = (one for one in found.outcomes if one.check == "weights")
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.findings[0].message.endswith("4 bits, each in a byte: not encoded here")
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    assert "w4a8: not checked: weights of 14 tensors" in console.export_text()


def test_a_hostile_order_of_groups_is_a_finding(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["W4A16"], tmp_path / "hostile"))
    order = torch.arange(256, dtype=torch.int32)
    change_tensors(folder, lambda t: t.update({f"{Q}.weight_g_idx": order}))
    messages = named(check_weights(evidence(reference, folder)))
    expected = "holds 2; expected groups from 0 to 1"
    assert messages == {f"{Q}.weight": f"{Q}.weight_g_idx: {expected}"}


def test_columns_in_another_order_are_read_by_their_groups(
    reference: Reference, tmp_path: Path
) -> None:
    """As GPTQ with actorder stores it: groups of columns that do not lie side by side."""
    order = np.random.default_rng(0).permutation(256)
    source = Path(shutil.copytree(reference.folder, tmp_path / "permuted"))
    change_tensors(source, lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:, order]}))
    quantize(str(source), tmp_path, ["W4A16"], name="m")
    folder = tmp_path / "m-W4A16"
    assert f"{Q}.weight" in named(check_weights(evidence(reference, folder)))

    def back(tensors: Tensors) -> None:
        words = tensors[f"{Q}.weight_packed"].numpy().view(np.uint32)
        codes = unpack_words(words, 4)[:, np.argsort(order)]
        packed = pack_words(np.ascontiguousarray(codes), 4).view(np.int32)
        tensors[f"{Q}.weight_packed"] = torch.from_numpy(packed.copy())
        groups = (np.argsort(order) // 128).astype(np.int32)
        tensors[f"{Q}.weight_g_idx"] = torch.from_numpy(groups)

    change_tensors(folder, back)
    outcome = check_weights(evidence(reference, folder))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["same_bytes"] == 13


@pytest.mark.parametrize("scheme", ["FP8_BLOCK", "W4A16_ASYM", "NVFP4A16", "MXFP8", "W8A8"])
def test_rows_read_alone_are_the_rows_of_the_whole(tmp_path: Path, scheme: str) -> None:
    made = make(scheme, tmp_path)
    with Checkpoint.open(tmp_path / "source") as source, Checkpoint.open(made) as stored:
        quantization = read_quantization(json.loads((made / "config.json").read_text()))
        assert quantization is not None
        found = quantization.group_of(Q)
        assert found is not None
        info = source.tensors[f"{Q}.weight"]
        matrix = open_matrix(stored, Q, found, (info.rows, info.columns))
        whole = matrix.values(0, info.rows)
        step = max(matrix.step, 8)
        parts = [matrix.values(i, min(i + step, info.rows)) for i in range(0, info.rows, step)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_block_size_changes_nothing_but_the_last_digits(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(str(reference.folder), tmp_path, ["NVFP4A16"], name="m", numerics="ct-sm90")
    with Checkpoint.open(tmp_path / "m-NVFP4A16") as stored:
        whole = compare_folder(reference.checkpoint, stored, threads=1).tensors
        monkeypatch.setattr(source_rows, "BLOCK_VALUES", 1000)
        for a, b in zip(whole, compare_folder(reference.checkpoint, stored).tensors, strict=True):
            assert (a.name, a.wrong, a.same_bytes) == (b.name, b.wrong, b.same_bytes)
            assert a.ratio == pytest.approx(b.ratio)
            if a.again is not None and b.again is not None:
                assert a.again.error == pytest.approx(b.again.error)
