"""diff on 16-bit checkpoints: an abliteration is recognised whoever made it, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.command import invoke
from tests.miniature import write_checkpoint
from verify.diff import Relation, diff

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("rank") / "base")


def changed(base: Path, folder: Path, edit: Callable[[Tensors], None]) -> Path:
    """The base with its tensors edited in plain torch, in bfloat16 as a stranger's script does."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def ablate(strength: float, *, common: bool) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(3)
        r = torch.randn(256, generator=generator)
        for name, w in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                r = r if common else torch.randn(256, generator=generator)
                unit = (r / r.norm()).double()
                wide = w.double()
                tensors[name] = (wide - strength * torch.outer(unit, unit @ wide)).bfloat16()

    return edit


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("common", [True, False])
def test_a_strangers_abliteration_is_named_with_its_strength_and_its_directions(
    base: Path, tmp_path: Path, strength: float, common: bool
) -> None:
    report = diff(base, changed(base, tmp_path / "b", ablate(strength, common=common)))
    assert report.relation is Relation.ABLATED
    assert len(report.changes) == 4
    for change in report.changes:
        assert change.strength == pytest.approx(strength, rel=0.02)
        assert change.ablation
    assert ("4 of them the same" if common else "each its own") in report.reason
    assert report.exit_code == 1


def test_an_edited_embedding_shares_the_direction_of_the_projections(
    base: Path, tmp_path: Path
) -> None:
    def edit(tensors: Tensors) -> None:
        ablate(1.0, common=True)(tensors)
        r = torch.randn(256, generator=torch.Generator().manual_seed(3)).double()
        r /= r.norm()
        name = "model.embed_tokens.weight"
        wide = tensors[name].double()
        tensors[name] = (wide - torch.outer(wide @ r, r)).bfloat16()

    report = diff(base, changed(base, tmp_path / "b", edit))
    assert report.relation is Relation.ABLATED
    assert "5 of 5 changed matrices" in report.reason
    assert "5 of them the same" in report.reason


def full_rank(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(4))
    tensors[name] = (tensors[name].float() + 1e-3 * noise).bfloat16()


def unrelated_rank_one(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    generator = torch.Generator().manual_seed(5)
    rows, columns = tensors[name].shape
    update = torch.outer(
        torch.randn(rows, generator=generator), torch.randn(columns, generator=generator)
    )
    tensors[name] = (tensors[name].float() + 1e-2 * update).bfloat16()


def rows_rescaled(tensors: Tensors) -> None:
    """An edit whose rows got their norms back: the difference is not of rank one any more."""
    before = {name: w.clone() for name, w in tensors.items()}
    ablate(1.0, common=True)(tensors)
    for name, w in before.items():
        if name.endswith("down_proj.weight"):
            scale = w.float().norm(dim=1, keepdim=True) / tensors[name].float().norm(
                dim=1, keepdim=True
            )
            tensors[name] = (tensors[name].float() * scale).bfloat16()


def a_norm_too(tensors: Tensors) -> None:
    ablate(1.0, common=True)(tensors)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2


@pytest.mark.parametrize("edit", [full_rank, unrelated_rank_one, rows_rescaled, a_norm_too])
def test_what_is_not_only_an_abliteration_is_another_model(
    base: Path, tmp_path: Path, edit: Callable[[Tensors], None]
) -> None:
    report = diff(base, changed(base, tmp_path / "b", edit))
    assert report.relation is Relation.OTHER_MODEL
    by_name = {change.name: change for change in report.changes}
    if edit is unrelated_rank_one:
        (change,) = by_name.values()
        assert change.rank_one
        assert abs(change.fit) < 0.2
    if edit is full_rank:
        assert not any(change.rank_one for change in by_name.values())
    if edit is rows_rescaled:
        assert not by_name["model.layers.0.mlp.down_proj.weight"].ablation


def test_the_command_says_it_to_people_and_to_machines(base: Path, tmp_path: Path) -> None:
    edited = changed(base, tmp_path / "b", ablate(1.0, common=True))
    shown = invoke("diff", base, edited)
    assert shown.exit_code == 1
    assert "had one direction taken out" in shown.output
    report = json.loads(invoke("diff", base, edited, "--json").stdout)
    assert report["relation"] == "ablated"
    assert len(report["changes"]) == 4
