"""The shape of a model from the fields of its GGUF header.

In: fields and tensors. Out: a `ModelSpec`, and why its attention is not modelled, if so. The head
dimension is stated or follows from the width; the vocabulary is as tall as the embedding. Layers
with KV heads of their own, a sliding window or a state-space part make an architecture that has no
formula here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError
from convert.families import FAMILIES
from convert.gguf import GGUFTensor
from convert.model_spec import ModelSpec

_UNMODELLED_KEYS = ("attention.sliding_window", "ssm.state_size", "attention.kv_lora_rank")


def unmodelled_in_gguf(fields: Mapping[str, Any]) -> str | None:
    """Why there is no formula for this file's attention; None where there is one."""
    arch = str(fields.get("general.architecture"))
    known = sorted({family.gguf_architecture for family in FAMILIES})
    if arch not in known:
        return f"llama.cpp architecture {arch!r}; known: {', '.join(known)}"
    if isinstance(fields.get(f"{arch}.attention.head_count_kv"), list):
        return "layers with different numbers of KV heads"
    for key in _UNMODELLED_KEYS:
        if fields.get(f"{arch}.{key}"):
            return f"hybrid attention ({key})"
    return None


def gguf_spec(fields: Mapping[str, Any], tensors: Sequence[GGUFTensor], path: Path) -> ModelSpec:
    """The shape; CheckpointError names the key that is missing."""
    arch = str(fields.get("general.architecture"))
    shapes = {tensor.name: tensor.shape for tensor in tensors}

    def integer(key: str, default: int | None = None) -> int:
        value = fields.get(f"{arch}.{key}", default)
        if isinstance(value, list) and value:
            value = max(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise CheckpointError(f"{path}: {arch}.{key} is {value!r}; expected a number")
        return value

    hidden, heads = integer("embedding_length"), integer("attention.head_count")
    if not heads or not hidden or "token_embd.weight" not in shapes:
        raise CheckpointError(f"{path}: no embedding, no heads or no width; not a language model")
    head_dim = integer("attention.key_length", hidden // heads)
    family = next((f for f in FAMILIES if f.gguf_architecture == arch), None)
    return ModelSpec(
        architecture=family.architectures[0] if family else arch,
        model_type=arch,
        hidden_size=hidden,
        intermediate_size=integer("feed_forward_length", 0),
        num_hidden_layers=integer("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=integer("attention.head_count_kv", heads) or 1,
        head_dim=head_dim,
        head_dim_stated=True,
        vocab_size=shapes["token_embd.weight"][0],
        max_position_embeddings=integer("context_length"),
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=None,
        eos_token_ids=(),
        dtype=None,
        quantization=None,
        num_experts=integer("expert_count", 0),
        num_experts_per_tok=integer("expert_used_count", 0),
    )
