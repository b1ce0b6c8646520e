"""hermes-nano in float32, and a few of the bundled conversations: for comparing with oneshot.

In bf16, maxima depend on which attention kernel rounds how, and a CPU multiplies it very slowly.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quantize.calibration_text import BUNDLED
from tests.miniature import change_json

NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of a folder of one shard."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118


def write_nano_in_float32(folder: Path, layers: int = 5) -> Path:
    """The checkpoint, its weights widened: all of it, or its first layers."""
    for file in NANO.glob("*.json"):
        shutil.copyfile(file, folder / file.name)
    change_json(folder / "config.json", torch_dtype="float32", num_hidden_layers=layers)
    dropped = tuple(f"model.layers.{number}." for number in range(layers, 5))
    kept = {n: t.float() for n, t in tensors(NANO) if not n.startswith(dropped)}
    save_file(kept, folder / "model.safetensors")
    return folder


def write_conversations(path: Path, step: int) -> Path:
    """Every so many of the bundled conversations."""
    path.write_text("\n".join(BUNDLED.read_text().split("\n")[:60:step]))
    return path
