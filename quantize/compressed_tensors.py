"""compressed-tensors folders, as vLLM reads them: planned shard by shard from the source's shards.

Every source shard becomes one shard of the same name. Matrices of the decoder layers get the
target's scheme, everything else (embeddings, head, norms, biases) is copied in its own dtype.
config.json is the source's with a `quantization_config`, written as `llmcompressor.model_free_ptq`
writes it, and so is the index; all other files are copied byte for byte. The embedding and the head
are named in `ignore`: without that, tools that match by name quantize the embedding, which vLLM
cannot load.

The schemes are in `compressed_table.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convert.cast import Cast
from convert.checkpoint import Checkpoint
from convert.errors import UnsupportedError
from convert.families.rules import FUSED, LINEAR_ROLES, Tensor
from convert.model_spec import read_json_object
from convert.output_tensor import OutputTensor, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile
from convert.safetensors import Layout, StoredTensor, layout
from convert.shard_index import INDEX_NAME
from quantize.compressed_table import KNOWN, KV_CACHE, TARGETS
from quantize.scaled import Shape
from quantize.static_scales import NO_SCALES, StaticScales

FORMAT_VERSION = "0.19.0"
"""The compressed-tensors release whose files these equal."""
IGNORE = ("lm_head", "model.embed_tokens")
_CONFIG_NAME = "config.json"


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
        "kv_cache_scheme": KV_CACHE if kv_cache else None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": FORMAT_VERSION,
        **({} if target in TARGETS else {"sparsity_config": {}}),
    }
