"""Ways to break an artifact that show only where it runs, and the check meant for each of them.

A breakage takes undamaged artifacts of hermes-nano by target (`calibrated` is FP8 with fixed scales
for activations and KV cache) and an empty path, and leaves a broken artifact there. GGUF files are
float32 but for the damage, and held to the gate of the type that is named.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.verify.damage import Edit, rewrite_gguf

Make = Callable[[dict[str, Path], Path], Path]
Change = Callable[[Any], Any]
INPUT, CACHE = r".*\.input_scale", r".*\.[kv]_scale"


@dataclass(frozen=True, slots=True)
class RunBreakage:
    """How to break it, the gate it is held to, the check that fails, and a word it says."""

    make: Make
    gate: str
    check: str
    named: str


def edited(pattern: str, change: Change) -> Edit:
    """An edit of the tensors whose names match."""

    def edit(tensors: dict[str, Any]) -> None:
        names = [name for name in tensors if re.fullmatch(pattern, name)]
        assert names
        for name in names:
            data, kind = tensors[name]
            tensors[name] = (np.ascontiguousarray(change(data), dtype=data.dtype), kind)

    return edit


def gguf(*, fields: Edit | None = None, tensors: Edit | None = None) -> Make:
    def make(made: dict[str, Path], place: Path) -> Path:
        path = place.with_suffix(".gguf")
        return rewrite_gguf(made["F32"], path, fields=fields, tensors=tensors)

    return make


def folder(pattern: str, change: Change) -> Make:
    """The calibrated folder, tensors that match the pattern changed."""

    def make(made: dict[str, Path], place: Path) -> Path:
        copy = Path(shutil.copytree(made["calibrated"], place))
        stored = load_file(copy / "model.safetensors")
        names = [name for name in stored if re.fullmatch(pattern, name)]
        assert names
        stored |= {name: change(stored[name]) for name in names}
        save_file(stored, copy / "model.safetensors")
        return copy

    return make


def two_bits(data: Any) -> Any:
    """Three values a block of 32, by one scale."""
    blocks = data.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True)
    return (np.round(blocks / scale) * scale).reshape(data.shape)


def low_rank(data: Any) -> Any:
    """A low-rank change, as a LoRA leaves."""
    rng = np.random.default_rng(0)
    rows, columns = data.shape
    change = rng.normal(size=(rows, 8)) @ rng.normal(size=(8, columns))
    return data + 0.1 * change * np.linalg.norm(data) / np.linalg.norm(change)


def other_rope_factor(data: Any) -> Any:
    """Divisors of the frequencies as a factor of 1.5 makes them where the model's is 8."""
    return np.where(data > 1, 1 + (data - 1) * 0.5 / 7, data)


RUN_BREAKAGES = {
    "one layer at 2 bits": RunBreakage(
        gguf(tensors=edited(r"blk\.2\.ffn_.*weight", two_bits)), "Q8_0", "chat_kl", "limit"
    ),
    "LoRA-sized noise": RunBreakage(
        gguf(tensors=edited(r"blk\..*attn_[qv]\.weight", low_rank)), "Q8_0", "chat_kl", "limit"
    ),
    "another rope base, run": RunBreakage(
        gguf(fields=lambda f: f.update({"llama.rope.freq_base": 500000.0})),
        "Q4_K", "long_context", "limit",
    ),
    "rope_freqs missing, run": RunBreakage(
        gguf(tensors=lambda t: t.pop("rope_freqs.weight")), "Q4_K", "long_context", "limit"
    ),
    "wrong rope factor": RunBreakage(
        gguf(tensors=edited(r"rope_freqs\.weight", other_rope_factor)),
        "Q4_K", "long_context", "limit",
    ),
    "activation scales tenfold": RunBreakage(
        folder(INPUT, lambda scale: scale * 10), "FP8", "scales", "too wide"
    ),
    "one activation scale a tenth": RunBreakage(
        folder(r".*layers\.1\.mlp\.down_proj\.input_scale", lambda scale: scale / 10),
        "FP8", "scales", "model.layers.1.mlp.down_proj.input_scale",
    ),
    "an activation scale that is no number": RunBreakage(
        folder(r".*layers\.1\.mlp\.down_proj\.input_scale", lambda scale: scale * torch.nan),
        "FP8", "scales", "model.layers.1.mlp.down_proj.input_scale",
    ),
    "KV scales 1.0": RunBreakage(folder(CACHE, torch.ones_like), "FP8", "scales", "k_scale"),
}  # fmt: skip
