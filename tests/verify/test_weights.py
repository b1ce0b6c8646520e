"""Weight evidence: rounding passes, and every way in which weights get mixed up is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from quantize.job import quantize
from tests.miniature import DTYPES, Shape, write_checkpoint
from tests.peers import model_free_ptq
from tests.quantize.test_identity_fp8 import ROW, awkward_rows
from tests.verify.conftest import evidence
from tests.verify.lint.checkpoints import Tensors, change_tensors, make
from tests.verify.test_verify import right, scripted, write_gate, write_suite
from verify import source_rows
from verify.artifact import Kind
from verify.check import Outcome, State
from verify.evidence import Reference
from verify.rounding import rounding_ratios
from verify.verify import verify
from verify.weights import check_weights, compare_folder

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def beside(reference: Reference, folder: Path) -> Reference:
    """The reference with another checkpoint in its place."""
    return replace(reference, checkpoint=Checkpoint.open(folder))


def found(outcome: Outcome) -> dict[str, str]:
    assert outcome.verdict.state is State.FAIL
    return {finding.subject: finding.message for finding in outcome.findings}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("scheme", ["FP8_DYNAMIC", "FP8_BLOCK"])
def test_what_rounding_leaves_passes(
    reference: Reference, tmp_path: Path, dtype: str, scheme: str
) -> None:
    rows = awkward_rows(dtype, 256)
    if scheme == "FP8_BLOCK":  # beside a value of 6e4 everything else of a block becomes zero
        rows = rows * 2.0**-10
    weight = torch.cat([rows, torch.randn(496, 256).to(DTYPES[dtype]) * 1e-5])
    source = write_checkpoint(tmp_path / "source", dtype=dtype, edit={ROW: weight})
    made = model_free_ptq(source, tmp_path / "made", scheme)
    outcome = check_weights(evidence(beside(reference, source), made))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["matrices"] == 14
    assert outcome.verdict.numbers["copies"] == 7
    assert 0.9 < float(str(outcome.verdict.numbers["worst_ratio"])) <= 1


def test_one_scale_a_tensor_passes(reference: Reference, tmp_path: Path) -> None:
    made = make("FP8", tmp_path)
    outcome = check_weights(evidence(beside(reference, tmp_path / "source"), made))
    assert outcome.verdict.state is State.PASS, outcome.findings


def test_f16_rows_with_subnormal_scales_need_the_wider_bound() -> None:
    generator = np.random.default_rng(5)
    absmax = np.geomspace(3e-7, 0.02, 4000).reshape(-1, 1)
    w = (absmax * generator.uniform(-1, 1, (4000, 64))).astype(np.float16)
    w[:, :1] = absmax
    scale = (np.abs(w.astype(np.float32)).max(axis=1, keepdims=True) / 448).astype(np.float16)
    scale[scale == 0] = 2.0**-10
    quotient = (w.astype(np.float32) / scale.astype(np.float32)).astype(np.float16)
    codes = torch.from_numpy(quotient.astype(np.float32)).clamp(-448, 448).to(torch.float8_e4m3fn)
    arguments = (
        w.astype(np.float64), codes.view(torch.uint8).numpy(), scale.astype(np.float64),
    )  # fmt: skip
    assert rounding_ratios(*arguments, "F16").max() <= 1
    assert rounding_ratios(*arguments, "F32").max() > 1, "the narrow bound would have done"


@pytest.mark.parametrize("block_values", [256, 1000, 1 << 20])
def test_block_size_changes_nothing(
    reference: Reference,
    artifacts: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    block_values: int,
) -> None:
    with Checkpoint.open(artifacts["FP8_DYNAMIC"]) as stored:
        whole = compare_folder(reference.checkpoint, stored, threads=1)
        monkeypatch.setattr(source_rows, "BLOCK_VALUES", block_values)
        assert compare_folder(reference.checkpoint, stored) == whole


def swap(tensors: Tensors) -> None:
    for suffix in ("weight", "weight_scale"):
        a, b = f"{K}.{suffix}", f"{K.replace('layers.1', 'layers.0')}.{suffix}"
        tensors[a], tensors[b] = tensors[b], tensors[a]


def transpose(tensors: Tensors) -> None:
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].T


def shift_a_scale(tensors: Tensors) -> None:
    scales = tensors[f"{Q}.weight_scale"].clone()
    scales[17] = scales[16] * 1.2
    tensors[f"{Q}.weight_scale"] = scales


def invert(tensors: Tensors) -> None:
    tensors[f"{Q}.weight_scale"] = 1 / tensors[f"{Q}.weight_scale"]


def spoil_a_code(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"].view(torch.uint8).clone()
    codes[3, 200] = 0x7F
    tensors[f"{Q}.weight"] = codes.view(torch.float8_e4m3fn)


def flip_a_bit(tensors: Tensors) -> None:
    bits = tensors["model.embed_tokens.weight"].view(torch.int16).clone()
    bits[100, 5] ^= 1
    tensors["model.embed_tokens.weight"] = bits.view(torch.bfloat16)


@pytest.mark.parametrize(
    ("damage", "subjects", "said"),
    [
        (shift_a_scale, {f"{Q}.weight"}, "in 1 rows are out of bounds, row 17 worst"),
        (swap, {f"{K}.weight", f"{K.replace('layers.1', 'layers.0')}.weight"}, "out of bounds"),
        (transpose, {f"{Q}.weight"}, "in 256 rows"),
        (invert, {f"{Q}.weight"}, "in 256 rows"),
        (spoil_a_code, {f"{Q}.weight"}, "1 values (0.00153 %) in 1 rows are out of bounds, row 3"),
        (flip_a_bit, {"model.embed_tokens.weight"}, "1 values (0.00122 %) in 1 rows"),
    ],
)
def test_damage_is_named(
    reference: Reference,
    artifacts: dict[str, Path],
    tmp_path: Path,
    damage: Callable[[Tensors], None],
    subjects: set[str],
    said: str,
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    change_tensors(folder, damage)
    messages = found(check_weights(evidence(reference, folder)))
    assert messages.keys() == subjects
    assert all(said in message for message in messages.values()), messages


def test_a_shard_of_another_model(reference: Reference, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", shards=3)
    other = {n: t + 0.05 for n, t in load_file(source / "model-00002-of-00003.safetensors").items()}
    quantize(str(source), tmp_path, ["FP8_DYNAMIC"], name="ours")
    outcome = check_weights(evidence(beside(reference, source), tmp_path / "ours-FP8_DYNAMIC"))
    assert outcome.verdict.state is State.PASS
    save_file(other, source / "model-00002-of-00003.safetensors")
    messages = found(
        check_weights(evidence(beside(reference, source), tmp_path / "ours-FP8_DYNAMIC"))
    )
    assert messages.keys() <= other.keys()
    assert len(messages) == min(len(other), 10)


def test_a_block_scale_moved_by_one_block(reference: Reference, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", shape=Shape(layers=1))
    made = model_free_ptq(source, tmp_path / "made", "FP8_BLOCK")

    def roll(tensors: Tensors) -> None:
        name = "model.layers.0.mlp.down_proj.weight_scale"
        tensors[name] = tensors[name] * torch.tensor([1.0, 1.0, 1.5, 1.0], dtype=torch.bfloat16)

    change_tensors(made, roll)
    messages = found(check_weights(evidence(beside(reference, source), made)))
    assert list(messages) == ["model.layers.0.mlp.down_proj.weight"]
    assert "in 256 rows" in messages["model.layers.0.mlp.down_proj.weight"]


def test_scales_of_no_granularity_are_named(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    change_tensors(folder, lambda t: t.update({f"{Q}.weight_scale": torch.ones(7).bfloat16()}))
    messages = found(check_weights(evidence(reference, folder)))
    assert messages == {f"{Q}.weight": f"{Q}.weight_scale: shape [7]; expected [256, 1]"}


def test_verify_looks_at_the_weights_of_a_folder_and_of_a_gguf_by_checks_of_their_own(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    engines = scripted(reference_folder, dict.fromkeys(Kind, right))
    broken = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    change_tensors(broken, spoil_a_code)
    report = verify(
        reference_folder,
        [artifacts["FP8_DYNAMIC"], artifacts["Q8_0"], broken],
        suite=write_suite(tmp_path, 100),
        gate=write_gate(tmp_path),
        open_engine=engines,
    )
    whole, gguf, spoilt = report.artifacts
    assert "weights" in [outcome.check for outcome in whole.outcomes]
    assert "weights" not in [outcome.check for outcome in gguf.outcomes]
    assert (whole.state, gguf.state, spoilt.state) == (State.PASS, State.PASS, State.FAIL)
    numbers = next(o for o in spoilt.outcomes if o.check == "weights").verdict.numbers
    assert numbers["worst_ratio"] is None, "there is no infinity in JSON"
