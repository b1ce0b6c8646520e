"""One way to break a checkpoint for every lint, and all that may be said about the result."""

from __future__ import annotations

import shutil

import torch

from tests.miniature import TEMPLATE
from tests.verify.lint.checkpoints import (
    CONFIG,
    INDEX,
    KV_SCHEME,
    change_json,
    change_quantization,
    group,
)
from tests.verify.lint.edits import (
    Breakage,
    add,
    add_config_to_16_bits,
    add_pickle,
    add_template_file,
    both,
    copy_layer,
    dequantize,
    drop,
    ignore,
    inverse_scales,
    kv_of_ones,
    move_in_the_index,
    on_config,
    on_index,
    on_tensors,
    on_tokenizer,
    put,
    quantize,
    repeat_a_tensor,
    shard,
    tags_as_control_tokens,
    truncate,
    with_code,
    with_row,
    with_templates,
)
from tests.verify.template_damage import DEFECTS

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
V = "model.layers.0.self_attn.v_proj"
FP8, SHARDED, BLOCK = "FP8_DYNAMIC", "SHARDED", "FP8_BLOCK"
NAN = float("nan")
ROUTER = "model.layers.0.block_sparse_moe.gate"
SIZE = frozenset({"size-off"})
BREAKAGES = {
    "embedding-quantized": Breakage(
        FP8, "model.embed_tokens", quantize("model.embed_tokens"), SIZE
    ),
    "head-quantized": Breakage(
        FP8,
        "lm_head",
        both(
            quantize("lm_head"),
            lambda folder: change_quantization(folder, lambda q: q["ignore"].remove("lm_head")),
        ),
    ),
    "norm-quantized": Breakage(
        FP8, "model.norm", put("model.norm.weight", lambda t: t.to(torch.float8_e4m3fn))
    ),
    "router-quantized": Breakage("MIXTRAL", ROUTER, quantize(ROUTER)),
    "siblings-differ": Breakage(FP8, V, both(dequantize(V), ignore(V))),
    "global-scale-differs": Breakage(
        "NVFP4A16", "self_attn", put(f"{Q}.weight_global_scale", lambda t: t * 2)
    ),
    "tensor-scale-differs": Breakage("FP8", "self_attn", lambda folder: None),
    "tensor-parallel-limited": Breakage(BLOCK, "2, 4, 8", lambda folder: None),
    "tensor-parallel-impossible": Breakage("NARROW", "size 1", lambda folder: None),
    "scale-missing": Breakage(FP8, f"{Q}.weight_scale", drop(f"{Q}.weight_scale")),
    "scale-extra": Breakage(
        FP8, "model.norm.weight_scale", add("model.norm.weight_scale", torch.ones(1).bfloat16())
    ),
    "scale-shape": Breakage(FP8, f"{Q}.weight_scale", put(f"{Q}.weight_scale", lambda t: t[:, 0])),
    "scale-dtype": Breakage(
        FP8, f"{Q}.weight_scale", put(f"{Q}.weight_scale", lambda t: t.double())
    ),
    "scale-not-positive": Breakage(
        FP8, f"{Q}.weight_scale", put(f"{Q}.weight_scale", with_row(5, 0.0))
    ),
    "scale-inverse": Breakage(FP8, "weight_scale", on_tensors(inverse_scales)),
    "kv-scales-missing": Breakage(
        FP8,
        "model.layers.1.self_attn.v_scale",
        lambda folder: change_quantization(folder, lambda q: q.update(kv_cache_scheme=KV_SCHEME)),
    ),
    "kv-scales-all-one": Breakage(FP8, "k_scale", kv_of_ones),
    "quantization-config-missing": Breakage(
        FP8,
        "quantization_config",
        lambda folder: change_json(folder / CONFIG, lambda c: c.pop("quantization_config")),
        SIZE,
    ),
    "quantization-config-unused": Breakage(FP8, "quantization_config", add_config_to_16_bits, SIZE),
    "quantization-not-understood": Breakage(
        FP8, "quantization_config", on_config(quantization_config={"quant_method": "gptq"})
    ),
    "module-not-quantized": Breakage(FP8, DOWN, dequantize(DOWN), SIZE),
    "module-not-in-config": Breakage(FP8, DOWN, ignore(DOWN), SIZE),
    "weight-dtype": Breakage(
        FP8, f"{DOWN}.weight", put(f"{DOWN}.weight", lambda t: t.view(torch.int8))
    ),
    "tensor-shape": Breakage(FP8, "model.norm.weight", put("model.norm.weight", lambda t: t[:255])),
    "dtype-differs": Breakage(FP8, "embed_tokens", on_config(torch_dtype="float16")),
    "model-not-understood": Breakage(FP8, CONFIG, on_config(architectures=["NewForCausalLM"])),
    "shard-missing": Breakage(SHARDED, shard(2), lambda folder: (folder / shard(2)).unlink()),
    "shard-unreadable": Breakage(SHARDED, shard(2), truncate),
    "shard-unlisted": Breakage(
        SHARDED,
        "consolidated.safetensors",
        lambda folder: shutil.copy(folder / shard(1), folder / "consolidated.safetensors"),
    ),
    "index-missing": Breakage(SHARDED, INDEX, lambda folder: (folder / INDEX).unlink()),
    "index-wrong": Breakage(
        FP8,
        "model.norm.weight",
        on_index(lambda index: index["weight_map"].pop("model.norm.weight")),
    ),
    "index-total-size": Breakage(
        FP8, INDEX, on_index(lambda index: index["metadata"].update(total_size=1))
    ),
    "tensor-twice": Breakage(SHARDED, "norm", repeat_a_tensor),
    "tensor-copied": Breakage(FP8, "layers.1.mlp.up_proj", on_tensors(copy_layer)),
    "tensor-missing": Breakage(FP8, "model.norm.weight", drop("model.norm.weight")),
    "tensor-unknown": Breakage(FP8, "extra.weight", add("extra.weight", torch.ones(4).bfloat16())),
    "size-off": Breakage(FP8, FP8, put("lm_head.weight", lambda t: t.float())),
    "weight-not-finite": Breakage(
        FP8, f"{DOWN}.weight", put(f"{DOWN}.weight", with_code(3, 7, 0x7F))
    ),
    "scale-not-finite": Breakage(
        FP8, f"{DOWN}.weight_scale", put(f"{DOWN}.weight_scale", with_row(2, NAN))
    ),
    "file-mode": Breakage(
        FP8, "model.safetensors", lambda folder: (folder / "model.safetensors").chmod(0o600)
    ),
    "file-stray": Breakage(FP8, "original/consolidated.00.pth", add_pickle),
    "tokenizer-truncation": Breakage(
        FP8, "truncation", on_tokenizer(truncation={"max_length": 2048, "strategy": "LongestFirst"})
    ),
    "tokenizer-padding": Breakage(
        FP8, "padding", on_tokenizer(padding={"strategy": "BatchLongest"})
    ),
    "tokenizer-missing": Breakage(
        FP8, "tokenizer.json", lambda folder: (folder / "tokenizer.json").unlink()
    ),
    **{
        name: Breakage(FP8, "tool_use", with_templates(default=TEMPLATE, tool_use=text))
        for name, text in DEFECTS.items()
    },
    "template-copies-differ": Breakage(FP8, "chat templates", add_template_file),
    "tool-use-template-missing": Breakage(FP8, "chat templates", with_templates(default=TEMPLATE)),
    "bos-postprocessor-lost": Breakage(FP8, "post_processor", on_tokenizer(post_processor=None)),
    "tool-tag-control": Breakage(FP8, "added_tokens", tags_as_control_tokens),
    "eos-differs": Breakage(
        FP8,
        "eos_token_id",
        lambda folder: change_json(
            folder / "generation_config.json", lambda g: g.update(eos_token_id=[258])
        ),
    ),
}
"""By the lint that must fire."""

FURTHER = {
    "scales of integers": ("scale-missing", Breakage("W8A8", DOWN, drop(f"{DOWN}.weight_scale"))),
    "the shape of packed integers": (
        "scale-missing", Breakage("W4A16", DOWN, drop(f"{DOWN}.weight_shape")),
    ),
    "zero points of asymmetric integers": (
        "scale-missing", Breakage("W4A16_ASYM", DOWN, drop(f"{DOWN}.weight_zero_point")),
    ),
    "scales of the wrong groups": (
        "scale-shape",
        Breakage("W4A16", DOWN, put(f"{DOWN}.weight_scale", lambda t: t[:, :2])),
    ),
    "the global scale": (
        "scale-missing",
        Breakage("NVFP4A16", DOWN, drop(f"{DOWN}.weight_global_scale")),
    ),
    "NaN in a scale in E4M3": (
        "scale-not-finite",
        Breakage("NVFP4A16", DOWN, put(f"{DOWN}.weight_scale", with_code(1, 1, 0xFF))),
    ),
    "NaN in a scale in E8M0": (
        "scale-not-finite",
        Breakage("MXFP4", DOWN, put(f"{DOWN}.weight_scale", with_code(1, 1, 0xFF))),
    ),
    "infinity in bfloat16": (
        "weight-not-finite",
        Breakage(FP8, "lm_head", put("lm_head.weight", with_row(9, float("inf")))),
    ),
    "the input's static scale": (
        "scale-missing", Breakage("FP8", DOWN, drop(f"{DOWN}.input_scale")),
    ),
    "AutoFP8 without its scale": (
        "scale-missing", Breakage("AUTOFP8", DOWN, drop(f"{DOWN}.weight_scale")),
    ),
    "DeepSeek's scale under the other name": (
        "scale-missing",
        Breakage(
            "DEEPSEEK",
            DOWN,
            on_tensors(
                lambda t: t.update({f"{DOWN}.weight_scale": t.pop(f"{DOWN}.weight_scale_inv")})
            ),
            frozenset({"scale-extra"}),
        ),
    ),
    "DeepSeek's scale as a true inverse": (
        "scale-inverse",
        Breakage("DEEPSEEK", DOWN, put(f"{DOWN}.weight_scale_inv", lambda t: 1 / t)),
    ),
    "KV scales that no config mentions": (
        "scale-extra",
        Breakage(
            "FP8_KV",
            "k_scale",
            lambda folder: change_quantization(folder, lambda q: q.update(kv_cache_scheme=None)),
        ),
    ),
    "an expert in 16 bits": (
        "siblings-differ",
        Breakage(
            "MIXTRAL",
            "experts.3.w2",
            both(
                dequantize("model.layers.0.block_sparse_moe.experts.3.w2"),
                ignore("model.layers.0.block_sparse_moe.experts.3.w2"),
            ),
        ),
    ),
    "lm_head not in ignore": (
        "module-not-quantized",
        Breakage(
            FP8,
            "lm_head",
            lambda folder: change_quantization(folder, lambda q: q["ignore"].remove("lm_head")),
            SIZE,
        ),
    ),
    "a strategy that the scales do not have": (
        "scale-shape",
        Breakage(
            FP8,
            DOWN,
            lambda folder: change_quantization(
                folder, lambda q: group(q)["weights"].update(strategy="tensor")
            ),
        ),
    ),
    "a tensor in another shard than the index says": (
        "index-wrong",
        Breakage(
            SHARDED,
            "model.norm.weight",
            on_index(move_in_the_index),
        ),
    ),
}  # fmt: skip
"""The same lints in other layouts, by what is broken."""
