"""config.json, read once and typed: what the rest of the project knows about a model.

Hugging Face writes the same facts in two dialects: up to transformers 4 `rope_theta`,
`rope_scaling` and `torch_dtype` at the top level, from 5 on `rope_parameters` and `dtype`. Both are
read here and nowhere else. Field names are those of config.json.

A value of the wrong type, a missing key or a head count that does not divide is a CheckpointError
that names the key. Nothing is guessed except what transformers itself defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, UnsupportedError

_HEAD_DIM_REQUIRED = ("qwen3", "seed_oss")
"""Models whose default head_dim is not hidden_size / num_attention_heads."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """The `llama3` frequency scaling of Llama 3.1 and later (factors per frequency band)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One decoder-only transformer; sizes in elements, names as in config.json."""

    architecture: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    head_dim_stated: bool
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tie_word_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str | None
    quantization: str | None
    num_experts: int = 0
    num_experts_per_tok: int = 0

    def size(self, dimension: str) -> int:
        """Elements along a named dimension, as the shapes in `convert/families` use them."""
        return {
            "vocab": self.vocab_size,
            "hidden": self.hidden_size,
            "intermediate": self.intermediate_size,
            "q": self.num_attention_heads * self.head_dim,
            "kv": self.num_key_value_heads * self.head_dim,
            "head": self.head_dim,
            "experts": self.num_experts,
        }[dimension]


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object; CheckpointError names file and place."""
    try:
        parsed = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: not found") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(parsed).__name__}, expected an object")
    return parsed


def read_model_spec(path: Path) -> ModelSpec:
    """Read `config.json` at `path`."""
    config = _Config(path, read_json_object(path))
    architectures = config.raw.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise CheckpointError(f"{path}: architectures is {architectures!r}; expected a list")
    heads = config.integer("num_attention_heads")
    hidden = config.integer("hidden_size")
    stated = config.raw.get("head_dim") is not None
    if not stated and config.raw.get("model_type") in _HEAD_DIM_REQUIRED:
        raise CheckpointError(f"{path}: head_dim is missing; this architecture needs it")
    if not stated and hidden % heads:
        raise CheckpointError(
            f"{path}: hidden_size {hidden} does not divide by num_attention_heads {heads}"
        )
    kv_heads = config.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads {heads} does not divide by num_key_value_heads {kv_heads}"
        )
    head_dim = config.integer("head_dim") if stated else hidden // heads
    if head_dim % 2:
        raise CheckpointError(f"{path}: head_dim {head_dim} is odd; rotary embeddings need pairs")
    rope = config.rope()
    return ModelSpec(
        architecture=str(architectures[0]),
        model_type=str(config.raw.get("model_type", "")),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_hidden_layers=config.integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        head_dim_stated=stated,
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        rope_theta=config.number("rope_theta", 10000.0, rope),
        rope_scaling=config.rope_scaling(rope),
        tie_word_embeddings=bool(config.raw.get("tie_word_embeddings", False)),
        bos_token_id=config.token_ids("bos_token_id", one=True)[0],
        eos_token_ids=tuple(i for i in config.token_ids("eos_token_id") if i is not None),
        dtype=config.raw.get("torch_dtype") or config.raw.get("dtype"),
        quantization=config.quantization(),
        num_experts=config.count("num_local_experts"),
        num_experts_per_tok=config.count("num_experts_per_tok"),
    )


@dataclass(frozen=True, slots=True)
class _Config:
    """The parsed file and typed access to it."""

    path: Path
    raw: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise CheckpointError(f"{self.path}: {key} is {value!r}; expected a positive integer")
        return value

    def count(self, key: str) -> int:
        """An integer that may be absent: then it is 0."""
        return self.integer(key) if self.raw.get(key) is not None else 0

    def number(self, key: str, default: float, nested: Mapping[str, Any] | None = None) -> float:
        value = (nested or {}).get(key, self.raw.get(key, default))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1e-18 < value < 1e18:  # so that float32 arithmetic stays finite
            raise CheckpointError(f"{self.path}: {key} is {value!r}; expected a positive number")
        return float(value)

    def rope(self) -> Mapping[str, Any]:
        value = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: rope_scaling is {value!r}; expected an object")
        return value

    def rope_scaling(self, rope: Mapping[str, Any]) -> RopeScaling | None:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return None
        if kind != "llama3":
            raise UnsupportedError(
                f"{self.path}: rope_type {kind!r} is not supported; supported: default, llama3"
            )
        length = rope.get("original_max_position_embeddings", 8192)
        if not isinstance(length, int) or isinstance(length, bool) or not 0 < length < 2**31:
            raise CheckpointError(
                f"{self.path}: original_max_position_embeddings is {length!r}; expected an integer"
            )
        scaling = RopeScaling(
            factor=self.number("factor", 8.0, rope),
            low_freq_factor=self.number("low_freq_factor", 1.0, rope),
            high_freq_factor=self.number("high_freq_factor", 4.0, rope),
            original_max_position_embeddings=length,
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise CheckpointError(
                f"{self.path}: high_freq_factor {scaling.high_freq_factor} must exceed"
                f" low_freq_factor {scaling.low_freq_factor}"
            )
        return scaling

    def token_ids(self, key: str, *, one: bool = False) -> list[int | None]:
        value = self.raw.get(key)
        values = value if isinstance(value, list) and not one else [value]
        for token in values:
            if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
                raise CheckpointError(f"{self.path}: {key} is {value!r}; expected token ids")
        return values

    def quantization(self) -> str | None:
        value = self.raw.get("quantization_config")
        if value is None:
            return None
        return str(value.get("quant_method", "unknown")) if isinstance(value, dict) else "unknown"
