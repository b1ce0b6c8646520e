"""Scales of activations that a folder for vLLM carries, from a calibration.

`input_scale` (1,) beside a matrix: what enters it is divided by that before it is rounded to FP8.
`self_attn.k_scale`, `self_attn.v_scale` (1,): the same for what goes into an FP8 KV cache. With a
the largest magnitude that calibration saw, each is RN(a / 448) in the dtype of the weights, or that
dtype's epsilon where that is 0: compressed-tensors' rule, the one `scaled.py` states for weights.

A mixture's expert that no token of the text reached has no scale and is an error. Matrices that
vLLM runs as one (q, k, v; gate, up) have one input and therefore one input scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from convert.cast import Cast
from convert.errors import InputError
from convert.families.rules import LINEAR_ROLES, Tensor
from convert.output_tensor import OutputTensor
from convert.tensor import to_float32
from quantize.calibration import Calibration
from quantize.fp8 import E4M3_MAX
from quantize.scaled import scales_of

_CACHE = {"attn_k": "k_scale", "attn_v": "v_scale"}


@dataclass(frozen=True, slots=True)
class StaticScales:
    """Which scales a folder gets: those of inputs, those of the KV cache, from `calibration`."""

    calibration: Calibration | None = None
    inputs: bool = False
    kv_cache: bool = False

    def of(self, tensor: Tensor, numerics: str) -> list[OutputTensor]:
        """The scales that go beside one tensor of the checkpoint."""
        if tensor.rule.role not in LINEAR_ROLES or len(tensor.info.shape) != 2:
            return []
        calibration, found = self.calibration, []
        dtype = "F32" if numerics == "fp32-scales" else tensor.info.dtype
        if self.inputs and calibration is not None:
            module = tensor.info.name.removesuffix(".weight")
            found.append(_scale(f"{module}.input_scale", calibration.input_absmax(module), dtype))
        if self.kv_cache and calibration is not None and tensor.rule.role in _CACHE:
            attention = tensor.info.name.rsplit(".", 2)[0]
            maxima = calibration.keys if tensor.rule.role == "attn_k" else calibration.values
            if tensor.layer is None or tensor.layer >= len(maxima):
                raise InputError(f"{calibration.folder}: nothing about the cache of {attention}")
            name = f"{attention}.{_CACHE[tensor.rule.role]}"
            found.append(_scale(name, maxima[tensor.layer], dtype))
        return found


NO_SCALES = StaticScales()


def _scale(name: str, absmax: float, dtype: str) -> OutputTensor:
    stored = scales_of(np.array([absmax], dtype=np.float32), E4M3_MAX, dtype)
    value = float(to_float32(stored, dtype)[0])
    return OutputTensor(name, (1,), "F32", Cast(dtype), computed=(value,))
