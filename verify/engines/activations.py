"""What enters a folder's quantized matrix products as transformers runs it: found, not believed.

In: a loaded model of compressed-tensors. Out: its quantized layers, and the words for what they
round their input to; UnsupportedError if it is not what was asked for. What compressed-tensors
rounds has changed between versions, so every layer is asked for a product that fits one answer
only: its input rounded by hand, or left alone. Three ways are known; absmax is over what shares the
scale:

    FP8, one scale a token     scale = absmax / 448
    FP8, a stored scale        scale = input_scale, and what lies beyond 448 times it is clipped
    FP4, a scale 16 values     scale = E4M3(absmax / 6 * input_global_scale) / input_global_scale

A scheme of four bits, or of integers, whose config names no activations leaves them alone in every
engine. FP8 weights without them are another thing: the same weights are served as W8A8 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from convert.errors import UnsupportedError
from verify.engines.static_scales import round_by_scale

ROUNDED, UNROUNDED = "float8_e4m3, one scale a token (W8A8)", "float32, not rounded (W8A16)"
ROUNDED_BY_STORED = "float8_e4m3, by stored scales (W8A8)"
ROUNDED_TO_FP4 = "float4_e2m1, one scale for 16 values (W4A4)"
WEIGHTS_ONLY = "float32, not rounded (weights only)"
LEFT_ALONE = {ROUNDED_TO_FP4: "float32, not rounded (W4A16)", WEIGHTS_ONLY: WEIGHTS_ONLY}
"""What it is called where a scheme's rounding is left out, if not UNROUNDED."""
Round = Callable[[torch.Tensor], torch.Tensor]
_FLOAT_NOISE = 1e-3
_E4M3 = torch.float8_e4m3fn
_FP4_GROUP = 16
_E2M1_ENDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def rounding_of(layer: Any) -> tuple[Round, str]:
    """How the layer's scheme rounds what enters it, and its name; FP8 by token unless it says."""
    scheme = layer.quantization_scheme
    if scheme.input_activations is None and is_weights_only(scheme):
        return lambda x: x, WEIGHTS_ONLY
    if (shared := getattr(layer, "input_global_scale", None)) is not None:
        return partial(round_in_groups, shared=shared), ROUNDED_TO_FP4
    if (scale := getattr(layer, "input_scale", None)) is not None:
        return partial(round_by_scale, scale=scale), ROUNDED_BY_STORED
    return round_per_token, ROUNDED


def is_weights_only(scheme: Any) -> bool:
    """Whether weights are in four bits or integers, and activations are not spoken of."""
    weights = scheme.weights
    return weights is not None and bool(weights.num_bits < 8 or weights.type == "int")


def round_per_token(x: torch.Tensor) -> torch.Tensor:
    """Values as e4m3 with the scale absmax / 448 of their token holds them, in x's own dtype."""
    scale = x.abs().amax(-1, keepdim=True) / 448
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (x / scale).to(_E4M3).to(x.dtype) * scale


def round_in_groups(x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    """Values as e2m1 with an e4m3 scale for each 16 of a row holds them, under one for all."""
    groups = x.reshape(*x.shape[:-1], -1, _FP4_GROUP)
    limit = torch.finfo(_E4M3).max
    local = groups.abs().amax(-1, keepdim=True) / 6 * shared
    local = local.clamp(max=limit).to(_E4M3).to(x.dtype)
    scale = torch.where(local == 0, torch.full_like(local, 0.125), local) / shared
    ends, magnitudes = (
        torch.tensor(t, dtype=x.dtype, device=x.device) for t in (_E2M1_ENDS, _E2M1)
    )
    scaled = groups / scale
    codes = magnitudes[torch.bucketize(scaled.abs(), ends)]
    return (codes.copysign(scaled) * scale).flatten(-2)


def quantized_layers(model: Any) -> dict[str, torch.nn.Module]:
    """Linear layers that compressed-tensors took over, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)  # an attention whose KV cache is rounded is none
        and getattr(module, "quantization_scheme", None) is not None
    }


@torch.inference_mode()
def measure_activations(
    folder: Path, layers: dict[str, torch.nn.Module], wanted_rounded: bool
) -> str:
    """What enters the quantized layers, found by asking each for a product only one answer fits."""
    how = UNROUNDED
    for name, layer in layers.items():
        rounding, how = rounding_of(layer)
        weight: Any = layer.weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight.device)
        got = layer(x)
        rounded = torch.nn.functional.linear(rounding(x), weight)
        plain = torch.nn.functional.linear(x, weight)
        wanted = rounded if wanted_rounded else plain
        apart = (
            plain.abs().max() * _FLOAT_NOISE
            if how == WEIGHTS_ONLY
            else (plain - rounded).abs().max()
        )
        if (got - wanted).abs().max() > 0.1 * apart:
            done = "rounded as its scheme says" if wanted_rounded else "left alone"
            raise UnsupportedError(
                f"{folder}: {name} is not computed with activations {done} by transformers"
                f" {transformers.__version__} and compressed-tensors; a comparison would misstate"
                " the error (FP8_DYNAMIC, FP8 and NVFP4 are computed with rounded activations here;"
                " --activations 16 leaves them alone)"
            )
    return how if wanted_rounded else LEFT_ALONE.get(how, UNROUNDED)
