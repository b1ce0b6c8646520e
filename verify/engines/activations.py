"""What enters a quantized layer, rounded as its scheme says: formulas to hold an engine against.

In: a linear layer that compressed-tensors took over. Out: the function that rounds its input, and
what that is called in a report. Three ways are known; absmax is over what shares the scale:

    FP8, one scale a token     scale = absmax / 448
    FP8, a stored scale        scale = input_scale, and what lies beyond 448 times it is clipped
    FP4, a scale 16 values     scale = E4M3(absmax / 6 * input_global_scale) / input_global_scale

A scheme of four bits, or of integers, whose config names no activations leaves them alone in every
engine. FP8 weights without them are another thing: the same weights are served as W8A8 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from verify.engines.static_scales import round_by_scale

ROUNDED, UNROUNDED = "float8_e4m3, one scale a token (W8A8)", "float32, not rounded (W8A16)"
ROUNDED_BY_STORED = "float8_e4m3, by stored scales (W8A8)"
ROUNDED_TO_FP4 = "float4_e2m1, one scale for 16 values (W4A4)"
WEIGHTS_ONLY = "float32, not rounded (weights only)"
LEFT_ALONE = {ROUNDED_TO_FP4: "float32, not rounded (W4A16)", WEIGHTS_ONLY: WEIGHTS_ONLY}
"""What it is called where a scheme's rounding is left out, if not UNROUNDED."""
Round = Callable[[torch.Tensor], torch.Tensor]
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
