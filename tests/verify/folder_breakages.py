"""More ways to break a folder for vLLM, or one in 16 bits: weights in other schemes than FP8."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.verify.breakages import (
    MLP,
    Breakage,
    edit_json,
    folder_with,
    multiply,
    one_row,
    swap,
    swap_matrices,
    trained_further,
)
from tests.verify.lint.checkpoints import KV_SCHEME

Tensors = dict[str, torch.Tensor]
UP = "model.layers.1.mlp.up_proj.weight"


def promise_cache_scales(config: dict[str, Any]) -> None:
    config["quantization_config"]["kv_cache_scheme"] = KV_SCHEME


def half_a_global_scale(stored: Tensors) -> None:
    stored[f"{MLP}_global_scale"] = stored[f"{MLP}_global_scale"] / 2


def scales_of_the_next_row(stored: Tensors) -> None:
    stored[f"{MLP}_scale"] = stored[f"{MLP}_scale"].roll(1, dims=0)


def codes_in_another_order(stored: Tensors) -> None:
    """Every word of eight codes with the halves of its bytes swapped, as other packings have it."""
    words = stored[f"{MLP}_packed"].view(torch.uint8)
    stored[f"{MLP}_packed"] = ((words >> 4) | (words << 4)).view(torch.int32)


def flip_a_bit(stored: Tensors) -> None:
    bits = stored[UP].view(torch.int16).clone()
    bits[100, 5] ^= 1
    stored[UP] = bits.view(torch.bfloat16)


FOLDER_BREAKAGES = {
    "FP8: KV scales promised and absent": Breakage(
        folder_with(files=edit_json("config.json", promise_cache_scales)),
        "structure", "model.layers.0.self_attn.k_scale: missing; kv_cache_scheme",
    ),
    "W8A8: a scale of one row off by half": Breakage(
        folder_with(one_row, target="W8A8"), "weights", "row 7 "
    ),
    "W8A8: two matrices swapped": Breakage(
        folder_with(swap_matrices, target="W8A8"), "weights", MLP
    ),
    "W4A16: a stale shard: a layer of another checkpoint": Breakage(
        partial(trained_further, target="W4A16"), "weights", UP
    ),
    "W4A16: scales shifted by a row": Breakage(
        folder_with(scales_of_the_next_row, target="W4A16"), "weights", MLP
    ),
    "W4A16: codes packed in another order": Breakage(
        folder_with(codes_in_another_order, target="W4A16"), "weights", MLP
    ),
    "NVFP4A16: half the global scale": Breakage(
        folder_with(half_a_global_scale, target="NVFP4A16"), "weights", MLP
    ),
    "NVFP4A16: a norm that was retrained": Breakage(
        folder_with(multiply("model.norm.weight", 1.1), target="NVFP4A16"),
        "weights", "model.norm.weight",
    ),
    "16 bits: two tensors swapped": Breakage(
        folder_with(swap(UP, UP.replace("layers.1", "layers.0")), target=None), "weights", UP
    ),
    "16 bits: one bit of one value": Breakage(
        folder_with(flip_a_bit, target=None), "weights", "1 values (0.000763 %) in 1 rows"
    ),
}  # fmt: skip
