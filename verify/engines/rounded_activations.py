"""What enters a folder's quantized matrix products as transformers runs it: found, not believed.

In: a loaded model of compressed-tensors. Out: its quantized layers, and the words for what they
round their input to; UnsupportedError if it is not what was asked for.

What compressed-tensors rounds has changed between versions. So every layer is asked for a product
that fits one answer only: its input rounded by hand (`activations.py`), or left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from convert.errors import UnsupportedError
from verify.engines.activations import LEFT_ALONE, UNROUNDED, WEIGHTS_ONLY, rounding_of

_FLOAT_NOISE = 1e-3


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
