"""The residue passes on what the run makes and fails on each way in which others go wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from convert.errors import TensorError
from convert.gguf_reader import read_gguf
from quantize.abliteration.edit_folder import read_edit
from quantize.job import quantize
from tests.miniature import Shape, weights, write_checkpoint
from tests.quantize.abliteration.edits import random_edit, unit, writers
from tests.verify.abliteration.edited import (
    LAYERS,
    Damage,
    damaged,
    file_name,
    half,
    make,
    nothing,
    other_direction,
    residue_of,
    row_norms,
    whole,
    wrong_axis,
)
from verify.abliteration.residue import check_residue
from verify.artifact import open_artifact
from verify.check import State

TARGETS = ["FP8_DYNAMIC", "FP8_BLOCK", "FP8_TENSOR", "W4A16", "Q8_0", "Q4_K_M", "Q2_K", "BF16"]
SHARP = ["FP8_DYNAMIC", "Q8_0", "Q4_K_M"]
EDITED = [name for name in writers(LAYERS) if ".layers.1." in name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of twelve layers, an edit of layer 1 only, and every target with and without it."""
    place = tmp_path_factory.mktemp("weights")
    shape = Shape(256, 256, layers=LAYERS)
    random_edit(place / "edit", EDITED)
    # As in a trained model, more of a matrix lies along the direction than chance would put there.
    plain, more = weights(shape, tied=False), {}
    for number, name in enumerate(EDITED):
        r = torch.from_numpy(unit(256, number))
        signs = torch.sign(plain[name][0])
        more[name] = (plain[name] + 0.05 * torch.outer(r, signs)).bfloat16()
    write_checkpoint(place / "base", shape=shape, edit=more)
    return make(place, TARGETS)


@pytest.fixture(scope="module")
def chance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same where weights are pure chance: nothing lies along the direction beyond it."""
    place = tmp_path_factory.mktemp("chance")
    random_edit(place / "edit", EDITED)
    write_checkpoint(place / "base", shape=Shape(256, 256, layers=2))
    return make(place, SHARP)


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_run_makes_passes_in_every_type(made: Path, target: str) -> None:
    edit = read_edit(made / "edit")
    with Checkpoint.open(made / "base") as base:
        edited = open_artifact(made / "made" / file_name(target))
        plain = open_artifact(made / "plain" / file_name(target))
        residue = check_residue(base, plain, edited, edit)
        assert residue.verdict.state is State.PASS, residue
        assert [point.subject for point in residue.points] == EDITED
        missing = check_residue(base, plain, plain, edit)
        assert missing.verdict.state is State.FAIL, missing


def test_scales_in_float32_are_read_as_they_are_stored(made: Path, tmp_path: Path) -> None:
    sides = []
    for folder, edit in (("plain", None), ("edited", made / "edit")):
        options: dict[str, Any] = {"numerics": "fp32-scales", "abliterate": edit, "name": "m"}
        quantize(str(made / "base"), tmp_path / folder, ["FP8_DYNAMIC", "W4A16"], **options)
        sides.append(tmp_path / folder)
    given = read_edit(made / "edit")
    with Checkpoint.open(made / "base") as base:
        for target in ("FP8_DYNAMIC", "W4A16"):
            plain, edited = (open_artifact(side / file_name(target)) for side in sides)
            assert check_residue(base, plain, edited, given).verdict.state is State.PASS
            assert check_residue(base, plain, plain, given).verdict.state is State.FAIL


def test_scales_of_another_shape_fail_by_name(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made / "made" / "m-FP8_DYNAMIC", tmp_path / "m-FP8_DYNAMIC")
    stored = load_file(folder / "model.safetensors")
    name = EDITED[0] + "_scale"
    stored[name] = stored[name][:1].clone()
    save_file(stored, folder / "model.safetensors")
    with Checkpoint.open(made / "base") as base:
        sides = open_artifact(made / "plain" / "m-FP8_DYNAMIC"), open_artifact(folder)
        found = check_residue(base, *sides, read_edit(made / "edit"))
    assert found.verdict.state is State.FAIL
    (finding,) = found.findings
    assert finding.message.endswith(f"{name} is BF16 [1, 1]; expected BF16 [256, 1]")


@pytest.mark.parametrize("damage", [half, row_norms, other_direction])
@pytest.mark.parametrize("target", [None, "FP8_DYNAMIC", "Q8_0"])
def test_an_edit_that_is_not_the_one_that_was_asked_for_fails(
    made: Path, tmp_path: Path, damage: Damage, target: str | None
) -> None:
    folder = damaged(made, tmp_path / "d", dict.fromkeys(EDITED, damage))
    found = residue_of(made, folder, target)
    assert found.verdict.state is State.FAIL
    assert {finding.subject for finding in found.findings} <= set(EDITED)


WORDS = {half: "strength 0.5", nothing: "strength", wrong_axis: "", row_norms: "norms of its rows"}


@pytest.mark.parametrize("damage", WORDS)
@pytest.mark.parametrize("target", SHARP)
def test_one_wrong_tensor_of_pure_chance_is_found_and_named(
    chance: Path, tmp_path: Path, damage: Damage, target: str
) -> None:
    """Put-back row norms are a thirtieth of what FP8 moves a value by, and still seen."""
    good, bad = EDITED
    found = residue_of(chance, damaged(chance, tmp_path / "d", {good: whole, bad: damage}), target)
    assert found.verdict.state is State.FAIL
    assert [finding.subject for finding in found.findings] == [bad]
    assert WORDS[damage] in found.findings[0].message


@pytest.mark.parametrize("target", [None, *SHARP])
def test_a_whole_edit_of_pure_chance_passes(
    chance: Path, tmp_path: Path, target: str | None
) -> None:
    folder = damaged(chance, tmp_path / "d", dict.fromkeys(EDITED, whole))
    assert residue_of(chance, folder, target).verdict.state is State.PASS


@pytest.mark.parametrize("strength", [0.7, 1.5])
def test_other_strengths_and_kept_norms_are_compared_with_their_own_form(
    tmp_path: Path, miniature: Path, strength: float
) -> None:
    edit = random_edit(tmp_path / "e", writers(2), strength=strength, keep_norms=True)
    targets = ["SAFETENSORS", "Q8_0", "Q4_K_M"]
    quantize(str(miniature), tmp_path, targets, abliterate=edit, name="m")
    quantize(str(miniature), tmp_path / "plain", targets[1:], name="m")
    with Checkpoint.open(miniature) as base:
        for name in map(file_name, targets):
            plain = tmp_path / "plain" / name if name.endswith("gguf") else miniature
            sides = open_artifact(plain), open_artifact(tmp_path / name)
            found = check_residue(base, *sides, read_edit(edit))
            assert found.verdict.state is State.PASS, found
            assert np.isfinite(float(found.verdict.numbers["worst_ratio"] or 0))


@pytest.mark.parametrize("keep_norms", [False, True])
def test_the_embedding_is_measured_as_every_other_tensor(
    tmp_path: Path, miniature: Path, keep_norms: bool
) -> None:
    name = "model.embed_tokens.weight"
    edit = random_edit(tmp_path / "e", [name, *writers(2)], keep_norms=keep_norms)
    without = random_edit(tmp_path / "w", writers(2), keep_norms=keep_norms, seed=1)
    targets = ["SAFETENSORS", "FP8_DYNAMIC", "Q4_K_M"]
    quantize(str(miniature), tmp_path / "made", targets, abliterate=edit, name="m")
    quantize(str(miniature), tmp_path / "less", targets, abliterate=without, name="m")
    quantize(str(miniature), tmp_path / "plain", targets[1:], name="m")
    with Checkpoint.open(miniature) as base:
        for target in targets:
            plain = tmp_path / "plain" / file_name(target)
            unedited = open_artifact(miniature if target == "SAFETENSORS" else plain)
            for folder, wanted in (("made", []), ("less", [name])):
                edited = open_artifact(tmp_path / folder / file_name(target))
                found = check_residue(base, unedited, edited, read_edit(edit))
                assert [finding.subject for finding in found.findings] == wanted, (target, found)
                assert found.points[0].subject == name


@pytest.mark.parametrize("target", [None, "BF16"])
def test_a_stored_nan_does_not_pass(made: Path, tmp_path: Path, target: str | None) -> None:
    place = tmp_path / "m"
    if target is None:
        shutil.copytree(made / "made" / "m-SAFETENSORS", place)
        tensors = load_file(place / "model.safetensors")
        tensors[EDITED[0]][3, 5] = torch.nan
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    else:
        place = tmp_path / "m.gguf"
        shutil.copy(made / "made" / file_name(target), place)
        with place.open("r+b") as file:
            file.seek(read_gguf(place).tensors["blk.1.attn_output.weight"].offset)
            file.write(b"\xc0\x7f")
    found = residue_of(made, place)
    assert found.verdict.state is State.FAIL
    assert [finding.subject for finding in found.findings] == [EDITED[0]]
    assert found.verdict.numbers["worst_ratio"] is None  # JSON has no NaN
    assert found.points[0].values["left"] is None


def test_an_edited_tensor_that_is_missing_fails_by_name(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "made" / "m-SAFETENSORS", tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    del tensors[EDITED[1]]
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    found = residue_of(made, tmp_path / "m")
    assert found.verdict.state is State.FAIL
    assert [(f.subject, f.message) for f in found.findings] == [
        (EDITED[1], f"m: {EDITED[1]} is missing")
    ]


def test_an_edit_of_another_model_is_bad_input(made: Path, tmp_path: Path) -> None:
    edits = [random_edit(tmp_path / "other", ["model.layers.40.mlp.down_proj.weight"])]
    edits.append(random_edit(tmp_path / "wide", writers(2), hidden=512))
    artifact = open_artifact(made / "base")
    with Checkpoint.open(made / "base") as base:
        for edit in edits:
            with pytest.raises(TensorError, match=r"has it not|of another model"):
                check_residue(base, artifact, artifact, read_edit(edit))
