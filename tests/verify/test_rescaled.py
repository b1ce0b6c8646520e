"""Scales that were moved between layers are taken out again, and what is damaged still shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize.job import quantize
from tests.families import write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer
from tests.verify.conftest import evidence
from tests.verify.lint.checkpoints import Tensors, change_tensors
from tests.verify.test_folder_weights import beside, named
from verify.check import State
from verify.evidence import Reference
from verify.weights import check_weights

LAYER = "model.layers.0."
Q, V, OUT = (f"{LAYER}self_attn.{letter}_proj" for letter in "qvo")
UP, DOWN, NORM = f"{LAYER}mlp.up_proj", f"{LAYER}mlp.down_proj", f"{LAYER}input_layernorm.weight"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in which each head has values of its own, so that v and o are a pair."""
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "m", shape=Shape(kv_heads=8))


@pytest.fixture(scope="module")
def rescaled(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """W4A16 of the same model with scales moved between its layers, as AWQ moves them."""
    out = tmp_path_factory.mktemp("rescaled")
    moved = Path(shutil.copytree(plain, out / "moved"))
    tensors = load_file(moved / "model.safetensors")
    random = torch.Generator().manual_seed(1)

    def move(fed: list[str], *, norm: str | None = None, rows: str | None = None) -> None:
        scales = torch.exp(
            0.7 * torch.randn(tensors[f"{fed[0]}.weight"].shape[1], generator=random)
        )
        for name in fed:
            tensors[f"{name}.weight"] = (tensors[f"{name}.weight"].float() * scales).bfloat16()
        if norm is not None:
            tensors[norm] = (tensors[norm].float() / scales).bfloat16()
        if rows is not None:
            divided = tensors[f"{rows}.weight"].float() / scales[:, None]
            tensors[f"{rows}.weight"] = divided.bfloat16()

    for layer in ("model.layers.0.", "model.layers.1."):
        attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
        move([f"{attention}{n}_proj" for n in "qkv"], norm=f"{layer}input_layernorm.weight")
        move([f"{attention}o_proj"], rows=f"{attention}v_proj")
        move([f"{mlp}gate_proj", f"{mlp}up_proj"], norm=f"{layer}post_attention_layernorm.weight")
        move([f"{mlp}down_proj"], rows=f"{mlp}up_proj")
    save_file(tensors, moved / "model.safetensors")
    quantize(str(moved), out, ["W4A16"], name="m")
    return out / "m-W4A16"


def test_scales_that_were_moved_between_layers_are_taken_out(
    reference: Reference, plain: Path, rescaled: Path
) -> None:
    outcome = check_weights(evidence(beside(reference, plain), rescaled))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["rescaled"] == 18, "four norms and fourteen matrices"
    assert outcome.verdict.numbers["copies"] == 7
    assert outcome.verdict.numbers["out_of_bounds"] == 0
    assert "18 tensors hold scales of others" in outcome.verdict.reason


def spoil(name: str, row: int, factor: float) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        scales = tensors[f"{name}.weight_scale"].clone()
        scales[row] = scales[row] * factor
        tensors[f"{name}.weight_scale"] = scales

    return edit


def other_norm(tensors: Tensors) -> None:
    tensors[NORM] = tensors[NORM].flip(0)


def stale(tensors: Tensors) -> None:
    for part in ("weight_packed", "weight_scale"):
        tensors[f"{DOWN}.{part}"] = tensors[f"{DOWN.replace('s.0', 's.1')}.{part}"].clone()


@pytest.mark.parametrize(
    ("damage", "subject", "said"),
    [
        (spoil(Q, 9, 3), f"{Q}.weight", "row 9 "),
        (spoil(UP, 9, 3), f"{DOWN}.weight", "column 9 "),
        (spoil(V, 9, 3), f"{OUT}.weight", "column 9 "),
        (spoil(DOWN, 9, 4), f"{DOWN}.weight", "row 9 "),
        (other_norm, NORM, "256 values"),
        (stale, f"{DOWN}.weight", "times that of encoding it again"),
    ],
)
def test_damage_shows_beneath_scales_that_were_moved(
    reference: Reference,
    plain: Path,
    rescaled: Path,
    tmp_path: Path,
    damage: Callable[[Tensors], None],
    subject: str,
    said: str,
) -> None:
    folder = Path(shutil.copytree(rescaled, tmp_path / "broken"))
    change_tensors(folder, damage)
    messages = named(check_weights(evidence(beside(reference, plain), folder)))
    assert said in messages[subject]


def test_a_retrained_norm_is_not_taken_for_moved_scales(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["W4A16"], tmp_path / "broken"))
    change_tensors(folder, lambda t: t.update({NORM: (t[NORM].float() * 1.05).bfloat16()}))
    messages = named(check_weights(evidence(reference, folder)))
    assert messages.keys() == {NORM}


def test_scales_moved_in_a_mixture_of_experts_leave_it_undecided(
    reference: Reference, tmp_path: Path
) -> None:
    (tmp_path / "vocabulary").mkdir()
    write_tokenizer(tmp_path / "vocabulary")
    source = write_family(tmp_path / "s", "mixtral", tmp_path / "vocabulary", vocab_size=320)
    quantize(str(source), tmp_path, ["W4A16"], name="m")
    folder = tmp_path / "m-W4A16"
    norm = f"{LAYER}post_attention_layernorm.weight"
    change_tensors(folder, lambda t: t.update({norm: t[norm] * 2}))
    outcome = check_weights(evidence(beside(reference, source), folder))
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert [finding.subject for finding in outcome.findings] == [norm]
