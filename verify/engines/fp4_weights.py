"""FP4 weights in float32, for an engine that computes in it.

compressed-tensors 0.19 decompresses FP4 codes and scales to bfloat16 whatever the model is computed
in, so that the first matrix product of a float32 model fails. Here they become what they stand for:
code times scale, under one scale for the tensor (NVFP4), which 16 bits do not hold; a code times a
power of two (MXFP4) they do.
"""

from __future__ import annotations

from typing import Any

import torch

_NVFP4_GROUP = 16


def decompress_fp4(model: Any) -> None:
    """Decompress a model that was loaded with FP4 weights; any other is left as it is."""
    layers = [
        module
        for module in model.modules()
        if getattr(getattr(module, "weight_packed", None), "dtype", None) == torch.uint8
    ]
    if not layers:
        return
    exact = [_nvfp4_values(layer) for layer in layers]
    model.hf_quantizer.compressor.decompress_model(model)
    for layer, values in zip(layers, exact, strict=True):
        values = layer.weight.float() if values is None else values
        for name, value in (("weight", values), ("weight_scale", layer.weight_scale.float())):
            delattr(layer, name)  # compressed-tensors would copy into the bfloat16 that is there
            setattr(layer, name, torch.nn.Parameter(value, requires_grad=False))


def _nvfp4_values(layer: Any) -> torch.Tensor | None:
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    shared = getattr(layer, "weight_global_scale", None)
    if shared is None:
        return None
    rows, width = layer.weight_packed.shape
    codes = unpack_fp4_from_uint8(layer.weight_packed, rows, 2 * width, dtype=torch.float32)
    scales = layer.weight_scale.float() / shared.float()
    values: torch.Tensor = codes * scales.repeat_interleave(_NVFP4_GROUP, dim=1)
    return values
