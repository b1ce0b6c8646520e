"""What an edit does not name is the same, and nothing came or went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from convert.gguf_reader import read_gguf
from quantize.abliteration.edit_folder import read_edit
from tests.miniature import Shape, write_checkpoint
from tests.quantize.abliteration.edits import random_edit, writers
from tests.verify.abliteration.edited import LAYERS, damaged, file_name, make, whole
from verify.abliteration.untouched import check_untouched
from verify.artifact import open_artifact
from verify.check import Outcome, State

TARGETS = ["FP8_DYNAMIC", "Q4_K_M"]
EDITED = [name for name in writers(LAYERS) if ".layers.1." in name]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("untouched")
    random_edit(place / "edit", EDITED)
    write_checkpoint(place / "base", shape=Shape(256, 256, layers=LAYERS))
    return make(place, TARGETS)


def look(made: Path, unedited: Path, edited: Path) -> Outcome:
    with Checkpoint.open(made / "base") as base:
        sides = open_artifact(unedited), open_artifact(edited)
        return check_untouched(base, *sides, read_edit(made / "edit"))


@pytest.mark.parametrize("target", TARGETS)
def test_what_the_run_makes_passes_with_everything_compared(made: Path, target: str) -> None:
    plain, edited = (made / folder / file_name(target) for folder in ("plain", "made"))
    found = look(made, plain, edited)
    assert found.verdict.state is State.PASS
    assert found.verdict.numbers["changed"] == 0
    if target == "Q4_K_M":  # the rope factors too, which the source does not have
        held = read_gguf(plain).tensors
        assert "rope_freqs.weight" in held
        assert found.verdict.numbers["tensors"] == len(held) - len(EDITED)


def test_an_edit_of_layer_1_that_also_reached_layers_10_and_11_is_found(
    made: Path, tmp_path: Path
) -> None:
    matched = [n for n in writers(LAYERS) if n.startswith("model.layers.1")]
    found = look(made, made / "base", damaged(made, tmp_path / "d", dict.fromkeys(matched, whole)))
    assert found.verdict.state is State.FAIL
    assert found.verdict.numbers["changed"] == 4
    assert all(".layers.1" in finding.subject for finding in found.findings)
    assert not any(".layers.1." in finding.subject for finding in found.findings)


NORM = "model.layers.3.input_layernorm.weight"
Tensors = dict[str, torch.Tensor]


def lose(tensors: Tensors, name: str) -> None:
    del tensors[name]


def add(tensors: Tensors, name: str) -> None:
    tensors[name] = torch.ones(4)


def retype(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name].view(torch.float16)


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (lose, NORM, "missing"),
        (lose, EDITED[0], "missing"),
        (add, "model.layers.1.self_attn.o_proj.bias", "in the edited artifact only"),
        (add, EDITED[0].replace("weight", "weight_scale"), "in the edited artifact only"),
        (retype, NORM, "changed, and the edit does not name it"),
    ],
)
def test_a_tensor_that_came_went_or_changed_its_form_is_named(
    made: Path,
    tmp_path: Path,
    damage: Callable[[Tensors, str], None],
    name: str,
    message: str,
) -> None:
    folder = damaged(made, tmp_path / "d", dict.fromkeys(EDITED, whole))
    tensors = load_file(folder / "model.safetensors")
    damage(tensors, name)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = look(made, made / "base", folder)
    assert found.verdict.state is State.FAIL
    assert [(f.subject, f.message) for f in found.findings] == [(name, message)]
