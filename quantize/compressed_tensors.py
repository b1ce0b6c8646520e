"""compressed-tensors folders, as vLLM reads them: planned shard by shard from the source's shards.

Every source shard becomes one shard of the same name. Matrices of the decoder layers get the
target's scheme, everything else (embeddings, head, norms, biases) is copied in its own dtype.
config.json is the source's with a `quantization_config`, written as `llmcompressor.model_free_ptq`
writes it, and so is the index; all other files are copied byte for byte. The embedding and the head
are named in `ignore`: without that, tools that match by name quantize the embedding, which vLLM
cannot load.

`TARGETS` has one row for each scheme: its preset in compressed-tensors' words. `FP8_TENSOR` has no
preset; it is what passing such a scheme by hand gives. Schemes in `CALIBRATED` need what a
calibration found out about activations, and are what llm-compressor's `oneshot` writes. Those in
`ONESHOT` need the text of a calibration, and `oneshot` itself computes them (`oneshot_folders.py`):
a row says what it will have stored. A method is named behind its scheme, as in W4A16_GPTQ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from convert.cast import Cast
from convert.checkpoint import INDEX_NAME, Checkpoint
from convert.errors import UnsupportedError
from convert.families.rules import FUSED, LINEAR_ROLES, Tensor
from convert.model_spec import read_json_object
from convert.output_tensor import OutputTensor, Scheme, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile
from convert.safetensors import Layout, StoredTensor, layout
from quantize.by_oneshot import by_oneshot
from quantize.fp4 import MXFP4_GROUP, NVFP4_GROUP, Mxfp4, Nvfp4
from quantize.scaled import BLOCK, Scaled, Shape
from quantize.static_scales import NO_SCALES, StaticScales

FORMAT_VERSION = "0.19.0"
"""The compressed-tensors release whose files these equal."""
IGNORE = ("lm_head", "model.embed_tokens")
INT4_GROUP = 128
_CONFIG_NAME = "config.json"

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
_CACHE8 = _arguments("tensor", observer="static_minmax", **_FLOAT8)


def plan_compressed(
    folder: str,
    target: str,
    checkpoint: Checkpoint,
    tensors: Sequence[Tensor],
    numerics: str,
    scales: StaticScales = NO_SCALES,
) -> PlannedArtifact:
    """Plan the folder: every shard, its index, config.json, and the side files to copy.

    Matrices that share a scale are put into the shard of the first of them. Static scales go into
    the shard of the matrix they belong to.
    """
    shards: dict[str, list[OutputTensor]] = {shard: [] for shard in checkpoint.shards}
    homes = {_key(t, t.rule.role): t.info.file for t in tensors}
    for tensor in tensors:
        role = FUSED.get(tensor.rule.role) if KNOWN[target].fused else None
        home = homes[_key(tensor, role)] if role else tensor.info.file
        shards[home] += _outputs(tensor, target, numerics)
        shards[home] += scales.of(tensor, numerics)
    files: list[PlannedFile] = []
    weight_map: dict[str, str] = {}
    total = 0
    for shard, outputs in shards.items():
        stored = [
            StoredTensor(output.name + part.suffix, part.dtype, part.shape)
            for output in outputs
            for part in output.parts
        ]
        placed = layout(stored)
        files.append(_shard_file(f"{folder}/{shard}", placed, outputs))
        weight_map.update(dict.fromkeys((t.name for t in stored), shard))
        total += sum(t.size_bytes for t in stored)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.append(_json_file(f"{folder}/{INDEX_NAME}", index))
    config = read_json_object(checkpoint.path / _CONFIG_NAME)
    config["quantization_config"] = quantization_config(target, kv_cache=scales.kv_cache)
    files.append(_json_file(f"{folder}/{_CONFIG_NAME}", config))
    copies = tuple(copy for copy in checkpoint.side_files() if copy != _CONFIG_NAME)
    return PlannedArtifact(folder, target, tuple(files), copies, is_folder=True)


def _key(tensor: Tensor, role: str) -> tuple[int | None, int | None, str, bool]:
    return tensor.layer, tensor.expert, role, len(tensor.info.shape) == 2


def _outputs(tensor: Tensor, target: str, numerics: str) -> list[OutputTensor]:
    """What becomes of one tensor: itself, or its codes and scales."""
    info, row = tensor.info, KNOWN[target]
    source = (Source(info, 0, info.rows),)
    output = OutputTensor(info.name, info.shape, info.dtype, Cast(info.dtype), source)
    if tensor.rule.role not in LINEAR_ROLES or len(info.shape) != 2:
        return [output]
    if info.columns % row.columns:
        raise UnsupportedError(
            f"{info.name}: {info.columns} columns do not divide into groups of {row.columns}, which"
            f" {target} needs; choose another target"
        )
    scheme = row.scheme(target, info.dtype, numerics=numerics)
    fused = FUSED.get(tensor.rule.role) if row.fused else None
    group = f"layers.{tensor.layer}.{tensor.expert}.{fused}" if fused else ""
    outputs = [replace(output, scheme=scheme, group=group)]
    if row.format == "pack-quantized":
        sizes = tuple(float(size) for size in info.shape)
        outputs.append(OutputTensor(info.name, (2,), "F32", Shape(), computed=sizes))
    if row.inputs and row.inputs["dynamic"] == "local":  # a scale a group, under one fixed for all
        module = info.name.removesuffix(".weight")
        outputs.append(OutputTensor(f"{module}.input_global_scale", (1,), "F32", Cast("F32")))
    return outputs


def _shard_file(path: str, placed: Layout, outputs: Sequence[OutputTensor]) -> PlannedFile:
    return PlannedFile(
        path=path,
        header=placed.header,
        size_bytes=placed.size_bytes,
        tensors=tuple(
            PlacedTensor(o, tuple(placed.offsets[o.name + part.suffix] for part in o.parts))
            for o in outputs
        ),
    )


def _json_file(path: str, content: dict[str, Any]) -> PlannedFile:
    text = json.dumps(content, indent=2, sort_keys=True).encode()
    return PlannedFile(path, text, len(text))


def quantization_config(target: str, *, kv_cache: bool = False) -> dict[str, Any]:
    """A target as compressed-tensors words it in config.json."""
    row = KNOWN[target]
    return {
        "config_groups": {
            row.preset or target: {
                "format": row.format,
                "input_activations": row.inputs,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": row.weights,
            }
        },
        "format": row.format,
        "global_compression_ratio": None,
        "ignore": list(IGNORE),
        "kv_cache_scheme": _CACHE8 if kv_cache else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": FORMAT_VERSION,
        **({} if target in TARGETS else {"sparsity_config": {}}),
    }
