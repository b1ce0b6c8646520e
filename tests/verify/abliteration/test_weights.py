"""The weight checks pass on what the run makes and fail on each way in which others go wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, TensorError
from convert.gguf_reader import read_gguf
from quantize.abliteration.edit_folder import EditFolder, read_edit
from quantize.job import quantize
from tests.miniature import Shape, weights, write_checkpoint
from tests.quantize.abliteration.edits import random_edit, unit, writers
from verify.abliteration.weights import check_residue, check_untouched
from verify.artifact import open_artifact
from verify.check import Outcome, State

TARGETS = ["FP8_DYNAMIC", "FP8_BLOCK", "FP8_TENSOR", "W4A16", "Q8_0", "Q4_K_M", "Q2_K", "BF16"]
LAYERS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of twelve layers, an edit of layer 1 only, and every target with and without it."""
    place = tmp_path_factory.mktemp("weights")
    shape, names = Shape(256, 256, layers=LAYERS), [n for n in writers(LAYERS) if ".layers.1." in n]
    random_edit(place / "edit", names)
    # As in a trained model, more of a matrix lies along the direction than chance would put there.
    plain, more = weights(shape, tied=False), {}
    for number, name in enumerate(names):
        r = torch.from_numpy(unit(256, number))
        signs = torch.sign(plain[name][0])
        more[name] = (plain[name] + 0.05 * torch.outer(r, signs)).bfloat16()
    base = write_checkpoint(place / "base", shape=shape, edit=more)
    quantize(str(base), place / "plain", TARGETS, name="m")
    quantize(
        str(base), place / "made", ["SAFETENSORS", *TARGETS], abliterate=place / "edit", name="m"
    )
    return place


def file_name(target: str) -> str:
    return f"m-{target}" if (target + ".").startswith(("FP8", "W", "SAFE")) else f"m-{target}.gguf"


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_run_makes_passes_in_every_type(made: Path, target: str) -> None:
    edit = read_edit(made / "edit")
    with Checkpoint.open(made / "base") as base:
        edited = open_artifact(made / "made" / file_name(target))
        plain = open_artifact(made / "plain" / file_name(target))
        residue = check_residue(base, edited, edit)
        assert residue.verdict.state is State.PASS, residue
        assert check_untouched(base, plain, edited, edit).verdict.state is State.PASS
        missing = check_residue(base, plain, edit)
        assert missing.verdict.state is State.FAIL, missing


Damage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def half(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return w - 0.5 * torch.outer(r, r @ w)


def row_norms(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    edited = w - torch.outer(r, r @ w)
    return edited * (w.norm(dim=1, keepdim=True) / edited.norm(dim=1, keepdim=True))


def other_direction(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    turned = r.roll(1)
    return w - torch.outer(turned, turned @ w)


def damaged(made: Path, folder: Path, damage: Damage, names: list[str]) -> Path:
    edit = read_edit(made / "edit")
    directions = {line.tensor: edit.directions[line.direction] for line in edit.recipe.edits}
    shutil.copytree(made / "base", folder)
    tensors = load_file(made / "base" / "model.safetensors")
    for name in names:
        r = next(d for n, d in directions.items() if n.split(".")[-2] == name.split(".")[-2])
        tensors[name] = damage(tensors[name].float(), torch.from_numpy(r)).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def residue_of(made: Path, folder: Path, target: str | None = None) -> Outcome:
    edit = read_edit(made / "edit")
    if target:
        quantize(str(folder), folder.parent / "q", [target], name="m")
        folder = folder.parent / "q" / file_name(target)
    with Checkpoint.open(made / "base") as base:
        return check_residue(base, open_artifact(folder), edit)


@pytest.mark.parametrize("damage", [half, row_norms, other_direction])
@pytest.mark.parametrize("target", [None, "FP8_DYNAMIC", "Q8_0"])
def test_an_edit_that_is_not_the_one_that_was_asked_for_fails(
    made: Path, tmp_path: Path, damage: Damage, target: str | None
) -> None:
    names = [line.tensor for line in read_edit(made / "edit").recipe.edits]
    found = residue_of(made, damaged(made, tmp_path / "d", damage, names), target)
    assert found.verdict.state is State.FAIL
    assert {finding.subject for finding in found.findings} <= set(names)


def test_an_edit_of_layer_1_that_also_reached_layers_10_and_11_is_found(
    made: Path, tmp_path: Path
) -> None:
    def whole(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return w - torch.outer(r, r @ w)

    matched = [n for n in writers(LAYERS) if n.startswith("model.layers.1")]
    folder = damaged(made, tmp_path / "d", whole, matched)
    with Checkpoint.open(made / "base") as base:
        edit: EditFolder = read_edit(made / "edit")
        sides = open_artifact(made / "base"), open_artifact(folder)
        found = check_untouched(base, *sides, edit)
    assert found.verdict.state is State.FAIL
    assert found.verdict.numbers["changed"] == 4
    assert all(".layers.1" in finding.subject for finding in found.findings)
    assert not any(".layers.1." in finding.subject for finding in found.findings)


@pytest.mark.parametrize("strength", [0.7, 1.5])
def test_other_strengths_and_kept_norms_are_compared_with_their_own_form(
    tmp_path: Path, miniature: Path, strength: float
) -> None:
    edit = random_edit(tmp_path / "e", writers(2), strength=strength, keep_norms=True)
    quantize(str(miniature), tmp_path, ["SAFETENSORS", "Q8_0"], abliterate=edit, name="m")
    with Checkpoint.open(miniature) as base:
        for name in ("m-SAFETENSORS", "m-Q8_0.gguf"):
            found = check_residue(base, open_artifact(tmp_path / name), read_edit(edit))
            assert found.verdict.state is State.PASS
            assert np.isfinite(float(found.verdict.numbers["worst_ratio"] or 0))


@pytest.mark.parametrize("target", [None, "BF16"])
def test_a_stored_nan_does_not_pass(made: Path, tmp_path: Path, target: str | None) -> None:
    edit = read_edit(made / "edit")
    line = edit.recipe.edits[0]
    place = tmp_path / "m"
    if target is None:
        shutil.copytree(made / "made" / "m-SAFETENSORS", place)
        tensors = load_file(place / "model.safetensors")
        tensors[line.tensor][3, 5] = torch.nan
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    else:
        place = tmp_path / "m.gguf"
        shutil.copy(made / "made" / file_name(target), place)
        name = "blk.1.attn_output.weight"
        with place.open("r+b") as file:
            file.seek(read_gguf(place).tensors[name].offset)
            file.write(b"\xc0\x7f")
    with Checkpoint.open(made / "base") as base:
        found = check_residue(base, open_artifact(place), edit)
    assert found.verdict.state is State.FAIL
    assert [finding.subject for finding in found.findings] == [line.tensor]
    assert found.verdict.numbers["worst_ratio"] is None  # JSON has no NaN


def test_an_edit_or_an_artifact_of_another_model_is_bad_input(
    made: Path, tmp_path: Path, miniature: Path
) -> None:
    edits = [random_edit(tmp_path / "other", ["model.layers.40.mlp.down_proj.weight"])]
    edits.append(random_edit(tmp_path / "wide", writers(2), hidden=512))
    quantize(str(miniature), tmp_path, ["Q8_0"], name="m")
    with Checkpoint.open(made / "base") as base:
        for edit in edits:
            with pytest.raises(TensorError, match=r"has it not|of another model"):
                check_residue(base, open_artifact(made / "base"), read_edit(edit))
        late = random_edit(tmp_path / "late", ["model.layers.9.mlp.down_proj.weight"])
        with pytest.raises(CheckpointError, match=r"blk\.9\.ffn_down\.weight is missing"):
            check_residue(base, open_artifact(tmp_path / "m-Q8_0.gguf"), read_edit(late))


def test_an_edit_of_the_embedding_alone_is_not_called_whole(made: Path, tmp_path: Path) -> None:
    edit = read_edit(random_edit(tmp_path / "e", ["model.embed_tokens.weight"]))
    with Checkpoint.open(made / "base") as base:
        found = check_residue(base, open_artifact(made / "base"), edit)
    assert found.verdict.state is State.NOT_ENOUGH_EVIDENCE
