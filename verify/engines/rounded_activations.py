"""What enters a folder's quantized matrix products as transformers runs it: found, not believed.

In: a loaded model of compressed-tensors. Out: its quantized layers, and the words for what they
round their input to; UnsupportedError if it is not what was asked for.

compressed-tensors rounds by one scale a token, or by the stored `input_scale`, or not at all, and
what it does has changed between versions. So every layer is asked for a product that fits one
answer only: its input rounded by hand, or left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from convert.errors import UnsupportedError
from verify.engines.static_scales import round_by_scale

ROUNDED, UNROUNDED = "float8_e4m3, one scale a token (W8A8)", "float32, not rounded (W8A16)"
ROUNDED_BY_STORED = "float8_e4m3, by stored scales (W8A8)"


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
    static: Any = None
    for name, layer in layers.items():
        weight: Any = layer.weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight.device)
        got = layer(x)
        static = getattr(layer, "input_scale", None)
        rounded_x = round_per_token(x) if static is None else round_by_scale(x, static)
        rounded = torch.nn.functional.linear(rounded_x, weight)
        plain = torch.nn.functional.linear(x, weight)
        wanted = rounded if wanted_rounded else plain
        if (got - wanted).abs().max() > 0.1 * (plain - rounded).abs().max():
            raise UnsupportedError(
                f"{folder}: {name} is not computed with activations "
                f"{'rounded to FP8' if wanted_rounded else 'left alone'} by transformers "
                f"{transformers.__version__} and compressed-tensors; a comparison would misstate"
                " the error (only FP8_DYNAMIC and FP8 are computed with 8-bit activations here;"
                " --activations 16 leaves them alone)"
            )
    if not wanted_rounded:
        return UNROUNDED
    return ROUNDED if static is None else ROUNDED_BY_STORED


def round_per_token(x: torch.Tensor) -> torch.Tensor:
    """Values as e4m3 with the scale absmax / 448 of their token holds them, in x's own dtype."""
    scale = x.abs().amax(-1, keepdim=True) / 448
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale
