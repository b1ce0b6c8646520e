"""The schemes of compressed-tensors folders, a row each: what is stored, and what is said of it.

`TARGETS` has those that need nothing but the weights. Schemes in `CALIBRATED` need what a
calibration found out about activations, and are what llm-compressor's `oneshot` writes. Those in
`ONESHOT` need the text of a calibration, and `oneshot` itself computes them (`oneshot_folders.py`):
a row says what it will have stored. A method is named behind its scheme, as in W4A16_GPTQ.

Words are compressed-tensors' own: a row's `weights` and `inputs` are its QuantizationArgs. Most
targets are its presets; `FP8_TENSOR` has none, it is what passing such a scheme by hand gives. A
new scheme is one row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from convert.output_tensor import Scheme
from quantize.by_oneshot import by_oneshot
from quantize.fp4 import MXFP4_GROUP, NVFP4_GROUP, Mxfp4, Nvfp4
from quantize.scaled import BLOCK, Scaled

INT4_GROUP = 128

_FLOAT8: dict[str, Any] = {"num_bits": 8, "type": "float"}
_INT8: dict[str, Any] = {"num_bits": 8, "type": "int"}
_FLOAT4: dict[str, Any] = {"num_bits": 4, "type": "float"}
_E8M0, _E4M3 = "torch.uint8", "torch.float8_e4m3fn"


def _arguments(strategy: str, *, dynamic: bool = False, **given: Any) -> dict[str, Any]:
    """compressed-tensors' QuantizationArgs, every key of it."""
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": None,
        "observer": None,
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": strategy,
        "symmetric": True,
        "zp_dtype": None,
        **given,
    }


@dataclass(frozen=True, slots=True)
class Target:
    """A scheme: `scheme(name, dtype, numerics=...)` makes it for weights of a source dtype.

    `columns` must divide the columns of every matrix. `fused` schemes share a scale between the
    matrices that vLLM runs as one. `preset` names the config group where the target does not.
    """

    scheme: Callable[..., Scheme]
    format: str
    weights: dict[str, Any]
    inputs: dict[str, Any] | None = None
    columns: int = 1
    fused: bool = False
    preset: str | None = None


_TOKEN8 = _arguments("token", dynamic=True, **_FLOAT8)
_GROUP4 = _arguments("group", group_size=MXFP4_GROUP, scale_dtype=_E8M0, **_FLOAT4)
TARGETS: dict[str, Target] = {
    "FP8_DYNAMIC": Target(
        partial(Scaled, code="E4M3", unit="channel"),
        "float-quantized",
        _arguments("channel", **_FLOAT8),
        _TOKEN8,
    ),
    "FP8_BLOCK": Target(
        partial(Scaled, code="E4M3", unit="block"),
        "float-quantized",
        _arguments("block", block_structure=[BLOCK, BLOCK], **_FLOAT8),
        _arguments("group", dynamic=True, group_size=BLOCK, **_FLOAT8),
    ),
    "FP8_TENSOR": Target(
        partial(Scaled, code="E4M3", unit="tensor"),
        "float-quantized",
        _arguments("tensor", **_FLOAT8),
        _TOKEN8,
        preset="config_group_0",
    ),
    "W8A8": Target(
        partial(Scaled, code="INT8", unit="channel"),
        "int-quantized",
        _arguments("channel", **_INT8),
        _arguments("token", dynamic=True, **_INT8),
    ),
    "W8A16": Target(
        partial(Scaled, code="UINT8", unit="group", group_size=INT4_GROUP, packed=True),
        "pack-quantized",
        _arguments("group", group_size=INT4_GROUP, **_INT8),
        columns=INT4_GROUP,
    ),
    "W4A16": Target(
        partial(Scaled, code="INT4", unit="group", group_size=INT4_GROUP, packed=True),
        "pack-quantized",
        _arguments("group", group_size=INT4_GROUP, num_bits=4, type="int"),
        columns=INT4_GROUP,
    ),
    "NVFP4A16": Target(
        Nvfp4,
        "nvfp4-pack-quantized",
        _arguments("tensor_group", group_size=NVFP4_GROUP, scale_dtype=_E4M3, **_FLOAT4),
        columns=NVFP4_GROUP,
        fused=True,
    ),
    "MXFP4": Target(
        Mxfp4, "mxfp4-pack-quantized", _GROUP4, {**_GROUP4, "dynamic": True}, columns=MXFP4_GROUP
    ),
    "MXFP4A16": Target(Mxfp4, "mxfp4-pack-quantized", _GROUP4, columns=MXFP4_GROUP),
}


CALIBRATED: dict[str, Target] = {
    "FP8": Target(
        partial(Scaled, code="E4M3", unit="tensor"),
        "float-quantized",
        _arguments("tensor", observer="memoryless_minmax", **_FLOAT8),
        _arguments("tensor", observer="static_minmax", **_FLOAT8),
        preset="group_0",
    ),
}
_BY_MINMAX: dict[str, Any] = {"observer": "memoryless_minmax"}
_INT4 = _arguments("group", group_size=INT4_GROUP, num_bits=4, type="int", **_BY_MINMAX)
_NVFP4 = _arguments("tensor_group", group_size=NVFP4_GROUP, scale_dtype=_E4M3, **_FLOAT4)
_PACKED4 = partial(Scaled, code="INT4", unit="group", group_size=INT4_GROUP, packed=True)
ONESHOT: dict[str, Target] = {
    "W4A16_GPTQ": Target(
        partial(by_oneshot, layout=_PACKED4),
        "pack-quantized",
        {**_INT4, "actorder": "static"},
        columns=INT4_GROUP,
    ),
    "W4A16_AWQ": Target(
        partial(by_oneshot, layout=_PACKED4, zero_points=True),
        "pack-quantized",
        {**_INT4, "symmetric": False, "zp_dtype": "torch.int8"},
        columns=INT4_GROUP,
    ),
    "NVFP4": Target(
        partial(by_oneshot, layout=Nvfp4),
        "nvfp4-pack-quantized",
        {**_NVFP4, **_BY_MINMAX},
        {**_NVFP4, "dynamic": "local", "observer": "static_minmax"},
        columns=NVFP4_GROUP,
        fused=True,
    ),
}
KNOWN = {**TARGETS, **CALIBRATED, **ONESHOT}
KV_CACHE = _arguments("tensor", observer="static_minmax", **_FLOAT8)
