"""EDIT folders for miniatures: random unit directions, one for every projection that writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantize.abliteration.edit_folder import EditFolder, Recipe, TensorEdit, write_edit


def writers(layers: int) -> list[str]:
    return [
        f"model.layers.{layer}.{module}.weight"
        for layer in range(layers)
        for module in ("self_attn.o_proj", "mlp.down_proj")
    ]


def unit(size: int, seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).standard_t(3, size)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def random_edit(
    folder: Path,
    tensors: list[str],
    *,
    hidden: int = 256,
    strength: float = 1.0,
    keep_norms: bool = False,
    seed: int = 0,
) -> Path:
    """Every tensor its own direction."""
    lines = tuple(
        TensorEdit(tensor=t, direction=f"d{i}", strength=strength) for i, t in enumerate(tensors)
    )
    directions = {line.direction: unit(hidden, seed + i) for i, line in enumerate(lines)}
    write_edit(folder, EditFolder(Recipe(keep_norms=keep_norms, edits=lines), directions))
    return folder
