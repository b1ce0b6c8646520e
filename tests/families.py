"""Random miniatures of every family, with a vocabulary of the caller's choice.

The tensors are made from the family's own rules (names and shapes), the config in Hugging Face's
words for the architecture; so a family added to the registry needs one entry in `CONFIGS`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from convert.cast import Cast
from convert.families import family_of
from convert.gguf import Field
from convert.gguf_plan import gguf_outputs, plan_gguf, quantized_order, with_schemes
from convert.metadata import architecture_fields
from convert.model_spec import ModelSpec, read_model_spec
from convert.tensor import TensorInfo
from tests.miniature import DTYPES

_COMMON = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "llama3": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_scaling": _LLAMA3_ROPE,
        "rope_theta": 500000.0,
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "head_dim": 32,
        "sliding_window": None,
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 64,
        "rope_theta": 1000000.0,
    },
    "seed_oss": {
        "architectures": ["SeedOssForCausalLM"],
        "model_type": "seed_oss",
        "head_dim": 64,
        "attention_bias": True,
        "attention_out_bias": False,
    },
}
_BIASES = {"seed_oss": ("q_proj.bias", "k_proj.bias", "v_proj.bias")}


def write_family(
    folder: Path,
    kind: str,
    vocabulary: Path,
    *,
    vocab_size: int,
    dtype: str = "BF16",
    shards: int = 1,
    **changes: Any,
) -> Path:
    """Write a miniature of `kind`, with the tokenizer files that lie in `vocabulary`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    config = {**_COMMON, **CONFIGS[kind], "torch_dtype": names[dtype], "vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    for file in vocabulary.iterdir():
        shutil.copyfile(file, folder / file.name)
    tensors = _tensors(folder, kind, DTYPES[dtype])
    parts = [dict(list(tensors.items())[i::shards]) for i in range(shards)]
    if shards == 1:
        save_file(parts[0], folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for i, part in enumerate(parts):
        file_name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file_name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file_name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    return folder


def required_infos(spec: ModelSpec) -> dict[str, TensorInfo]:
    """The tensors a BF16 checkpoint of this spec must have."""
    required = family_of(spec).required(spec)
    return {n: TensorInfo(n, "BF16", s, "model.safetensors", 0) for n, s in required}


def write_header_only(spec: ModelSpec, path: Path) -> Path:
    """Write a BF16 GGUF of this shape: header, then a hole."""
    family = family_of(spec)
    arch = family.gguf_architecture
    fields = [
        Field("general.architecture", "str", arch),
        *architecture_fields(arch, spec, 32),
        Field("tokenizer.ggml.model", "str", "none"),
    ]
    if arch != "llama":
        fields.append(Field(f"{arch}.vocab_size", "u32", spec.vocab_size))
    outputs = gguf_outputs(spec, family.recognise(spec, required_infos(spec)))
    order = quantized_order(with_schemes(outputs, lambda output: Cast("BF16")))
    (file,) = plan_gguf("m", "BF16", fields, order).files
    path.write_bytes(file.header)
    with path.open("r+b") as stream:
        stream.truncate(file.size_bytes)
    return path


def _tensors(folder: Path, kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    spec = read_model_spec(folder / "config.json")
    family = family_of(spec)
    generator = torch.Generator().manual_seed(len(kind))
    tensors = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for rule in family.rules:
        biased = rule.hf.endswith(_BIASES.get(kind, ("-",)))
        if rule.gguf is None or (rule.optional and not biased):
            continue
        if rule.role == "output" and spec.tie_word_embeddings:
            continue
        shapes |= dict(rule.tensors(spec))
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=generator) * 0.02
        centre = 1.0 if "norm" in name else 0.0
        tensors[name] = (values + centre).to(dtype)
    return tensors
