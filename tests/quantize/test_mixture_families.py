"""The types of every mixture, with and without an imatrix, in the real shapes of other families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.families import family_of
from convert.gguf_plan import gguf_outputs, quantized_order
from convert.model_spec import ModelSpec
from quantize.mixture import choose_types, mixture_needs_importance
from quantize.mixture_table import MIXTURES
from tests.families import required_infos, write_header_only
from tests.peers import _DRY_RUN_LINE, llama_quantize

# architecture, model_type, layers, hidden, intermediate, heads, KV heads, vocabulary, experts
SHAPES: dict[str, tuple[Any, ...]] = {
    "3B": ("LlamaForCausalLM", "llama", 28, 3072, 8192, 24, 8, 128256, 0),
    "70B": ("LlamaForCausalLM", "llama", 80, 8192, 28672, 64, 8, 128256, 0),
    "405B": ("LlamaForCausalLM", "llama", 126, 16384, 53248, 128, 8, 128256, 0),
    "Mixtral 8x7B": ("MixtralForCausalLM", "mixtral", 32, 4096, 14336, 32, 8, 32002, 8),
    "Mistral 7B": ("MistralForCausalLM", "mistral", 32, 4096, 14336, 32, 8, 32032, 0),
    "Qwen3 14B": ("Qwen3ForCausalLM", "qwen3", 40, 5120, 17408, 40, 8, 151936, 0),
    "Seed-OSS 36B": ("SeedOssForCausalLM", "seed_oss", 64, 5120, 27648, 80, 8, 155136, 0),
}


def spec_of(name: str) -> ModelSpec:
    architecture, kind, layers, hidden, intermediate, heads, kv_heads, vocab, experts = SHAPES[name]
    return ModelSpec(
        architecture=architecture,
        model_type=kind,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        head_dim_stated=True,
        vocab_size=vocab,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        rope_scaling=None,
        tie_word_embeddings=name == "3B",
        bos_token_id=1,
        eos_token_ids=(2,),
        dtype="bfloat16",
        quantization=None,
        num_experts=experts,
        num_experts_per_tok=2 if experts else 0,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_types_equal_llama_cpp_s_dry_run(tmp_path: Path, name: str) -> None:
    spec = spec_of(name)
    family = family_of(spec)
    outputs = gguf_outputs(spec, family.recognise(spec, required_infos(spec)))
    order = {t.name: i for i, t in enumerate(quantized_order([o.tensor for o in outputs]))}
    outputs.sort(key=lambda output: order[output.tensor.name])
    sparse = write_header_only(spec, tmp_path / "m.gguf")
    ones = {
        o.tensor.name: np.ones(
            o.tensor.shape[-1] * (o.tensor.shape[0] if len(o.tensor.shape) > 2 else 1), np.float32
        )
        for o in outputs
        if o.is_matrix
    }
    for mixture in MIXTURES.values():
        for imatrix in (None, ones):
            choices = choose_types(spec, mixture, outputs, importance=imatrix is not None)
            needed = any(
                mixture_needs_importance(mixture, o.role, choices[o.tensor.name].ggml_type)
                for o in outputs
                if o.is_matrix
            )
            code, log = llama_quantize(
                sparse, tmp_path / "none", mixture.name, imatrix=imatrix, dry_run=True
            )
            assert code == 0, log
            said = "require an imatrix" in log
            assert said == (needed and imatrix is None), mixture.name
            theirs = {n: (new or old).upper() for n, old, new in _DRY_RUN_LINE.findall(log)}
            ours = {
                o.tensor.name: choices[o.tensor.name].ggml_type if o.is_matrix else "F32"
                for o in outputs
            }
            assert ours == theirs, (mixture.name, imatrix is not None)
