"""A compressed-tensors folder, as vLLM reads it: planned shard by shard from the source's shards.

Every source shard becomes one shard of the same name. Matrices of the decoder layers get the FP8
scheme, everything else (embeddings, head, norms, biases) is copied in its own dtype. config.json is
the source's with a `quantization_config`, written as `llmcompressor.model_free_ptq` writes it, and
so is the index; all other files are copied byte for byte. The embedding and the head are named in
`ignore`: without that, tools that match by name quantize the embedding, which vLLM cannot load.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convert.cast import Cast
from convert.checkpoint import INDEX_NAME, Checkpoint
from convert.families.rules import LINEAR_ROLES, Tensor
from convert.model_spec import read_json_object
from convert.output_tensor import OutputTensor, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile
from convert.safetensors import Layout, StoredTensor, layout
from quantize.fp8 import Fp8Channel

FORMAT_VERSION = "0.19.0"
"""The compressed-tensors release whose files these equal."""
IGNORE = ("lm_head", "model.embed_tokens")
_CONFIG_NAME = "config.json"


def plan_fp8(name: str, checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> PlannedArtifact:
    """Plan the folder `name`: every shard, its index, config.json, and the side files to copy."""
    shards: dict[str, list[OutputTensor]] = {shard: [] for shard in checkpoint.shards}
    for tensor in tensors:
        shards[tensor.info.file].append(_output(tensor))
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
        files.append(_shard_file(f"{name}/{shard}", placed, outputs))
        weight_map.update(dict.fromkeys((t.name for t in stored), shard))
        total += sum(t.size_bytes for t in stored)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files.append(_json_file(f"{name}/{INDEX_NAME}", index))
    config = read_json_object(checkpoint.path / _CONFIG_NAME)
    config["quantization_config"] = _quantization_config()
    files.append(_json_file(f"{name}/{_CONFIG_NAME}", config))
    copies = tuple(copy for copy in checkpoint.side_files() if copy != _CONFIG_NAME)
    return PlannedArtifact(name, "FP8_DYNAMIC", tuple(files), copies, is_folder=True)


def _output(tensor: Tensor) -> OutputTensor:
    info = tensor.info
    source = (Source(info, 0, info.rows),)
    output = OutputTensor(info.name, info.shape, info.dtype, Cast(info.dtype), source)
    if tensor.rule.role not in LINEAR_ROLES:
        return output
    return replace(output, scheme=Fp8Channel(info.dtype))


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


def _arguments(strategy: str, *, dynamic: bool) -> dict[str, Any]:
    return {
        "actorder": None,
        "block_structure": None,
        "dynamic": dynamic,
        "group_size": None,
        "num_bits": 8,
        "observer": None,
        "observer_kwargs": {},
        "scale_dtype": None,
        "strategy": strategy,
        "symmetric": True,
        "type": "float",
        "zp_dtype": None,
    }


def _quantization_config() -> dict[str, Any]:
    """FP8_DYNAMIC as compressed-tensors words it: channel weights, dynamic token activations."""
    return {
        "config_groups": {
            "FP8_DYNAMIC": {
                "format": "float-quantized",
                "input_activations": _arguments("token", dynamic=True),
                "output_activations": None,
                "targets": ["Linear"],
                "weights": _arguments("channel", dynamic=False),
            }
        },
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": list(IGNORE),
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": FORMAT_VERSION,
    }
