"""A random base, an edit of one of its layers, and every target with and without it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from quantize.abliteration.edit_folder import read_edit
from quantize.job import quantize
from verify.abliteration.residue import check_residue
from verify.artifact import open_artifact
from verify.check import Outcome

LAYERS = 12
Damage = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def file_name(target: str) -> str:
    return f"m-{target}" if (target + ".").startswith(("FP8", "W", "SAFE")) else f"m-{target}.gguf"


def make(place: Path, targets: list[str]) -> Path:
    """`plain` and `made` beside the `base` and the `edit` that are in `place`."""
    quantize(str(place / "base"), place / "plain", targets, name="m")
    everything = ["SAFETENSORS", *targets]
    quantize(str(place / "base"), place / "made", everything, abliterate=place / "edit", name="m")
    return place


def whole(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return w - torch.outer(r, r @ w)


def half(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return w - 0.5 * torch.outer(r, r @ w)


def nothing(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return w


def row_norms(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    edited = whole(w, r)
    return edited * (w.norm(dim=1, keepdim=True) / edited.norm(dim=1, keepdim=True))


def wrong_axis(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """What the matrix reads is edited, in place of what it writes; it must be square."""
    return w - torch.outer(w @ r, r)


def other_direction(w: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return whole(w, r.roll(1))


def damaged(made: Path, folder: Path, damages: dict[str, Damage]) -> Path:
    """The base with each named tensor changed along its own direction."""
    edit = read_edit(made / "edit")
    by_kind = {li.tensor.split(".")[-2]: edit.directions[li.direction] for li in edit.recipe.edits}
    shutil.copytree(made / "base", folder)
    tensors = load_file(made / "base" / "model.safetensors")
    for name, damage in damages.items():
        r = torch.from_numpy(by_kind[name.split(".")[-2]])
        tensors[name] = damage(tensors[name].float(), r).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def residue_of(made: Path, edited: Path, target: str | None = None) -> Outcome:
    """The check on a folder, or on what is made of it as `target`."""
    unedited = made / "base"
    if target:
        quantize(str(edited), edited.parent / "q", [target], name="m")
        edited = edited.parent / "q" / file_name(target)
        unedited = made / "plain" / file_name(target)
    with Checkpoint.open(made / "base") as base:
        sides = open_artifact(unedited), open_artifact(edited)
        return check_residue(base, *sides, read_edit(made / "edit"))
