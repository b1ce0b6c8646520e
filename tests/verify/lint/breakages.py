"""One way to break a checkpoint for every lint, and all that may be said about the result."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.verify.lint.checkpoints import (
    CONFIG,
    INDEX,
    KV_SCHEME,
    Tensors,
    change_json,
    change_quantization,
    change_tensors,
    group,
    linears,
    to_channel_fp8,
)

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
V = "model.layers.0.self_attn.v_proj"


@dataclass(frozen=True)
class Breakage:
    """What is done to which clean checkpoint; `also` are lints that follow from it.

    `subject` must be named by the finding.
    """

    scheme: str
    subject: str
    damage: Callable[[Path], Any]
    also: frozenset[str] = field(default=frozenset())


def on_tensors(edit: Callable[[Tensors], Any]) -> Callable[[Path], Any]:
    return lambda folder: change_tensors(folder, edit)


def on_config(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: change_json(folder / CONFIG, lambda config: config.update(values))


def on_index(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda folder: change_json(folder / INDEX, edit)


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], Any]:
    """Replace a tensor by a function of it."""
    return on_tensors(lambda tensors: tensors.update({name: value(tensors[name])}))


def add(name: str, value: torch.Tensor) -> Callable[[Path], Any]:
    return on_tensors(lambda tensors: tensors.update({name: value}))


def drop(name: str) -> Callable[[Path], Any]:
    return on_tensors(lambda tensors: tensors.pop(name))


def both(*damages: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [damage(folder) for damage in damages]


def quantize(module: str) -> Callable[[Path], Any]:
    def edit(tensors: Tensors) -> None:
        weight, scale = to_channel_fp8(tensors[f"{module}.weight"])
        tensors |= {f"{module}.weight": weight, f"{module}.weight_scale": scale}

    return on_tensors(edit)


def dequantize(module: str) -> Callable[[Path], Any]:
    def edit(tensors: Tensors) -> None:
        scale = tensors.pop(f"{module}.weight_scale")
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"].bfloat16() * scale

    return on_tensors(edit)


def ignore(*modules: str) -> Callable[[Path], Any]:
    return lambda folder: change_quantization(folder, lambda q: q["ignore"].extend(modules))


def with_row(row: int, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[row] = value
        return changed

    return edit


def with_code(row: int, column: int, code: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        codes = tensor.view(torch.uint8).clone()
        codes[row, column] = code
        return codes.view(tensor.dtype)

    return edit


def inverse_scales(tensors: Tensors) -> None:
    for module in linears(tensors):
        tensors[f"{module}.weight_scale"] = 1 / tensors[f"{module}.weight_scale"]


def copy_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.0.mlp.up_proj." in name]:
        tensors[name.replace(".layers.0.", ".layers.1.")] = tensors[name].clone()


def shard(number: int) -> str:
    return f"model-{number:05d}-of-00003.safetensors"


def repeat_a_tensor(folder: Path) -> None:
    first, second = load_file(folder / shard(1)), load_file(folder / shard(2))
    name = next(name for name in first if "norm" in name)
    save_file(second | {name: first[name]}, folder / shard(2))
    (folder / shard(2)).chmod(0o644)


def truncate(folder: Path) -> None:
    content = (folder / shard(2)).read_bytes()
    (folder / shard(2)).write_bytes(content[:-100])


def add_pickle(folder: Path) -> None:
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"\x80\x04")


def move_in_the_index(index: dict[str, Any]) -> None:
    there = index["weight_map"]["model.norm.weight"]
    index["weight_map"]["model.norm.weight"] = shard(1) if there != shard(1) else shard(3)


def on_tokenizer(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: change_json(folder / "tokenizer.json", lambda t: t.update(values))


def kv_of_ones(folder: Path) -> None:
    change_quantization(folder, lambda q: q.update(kv_cache_scheme=KV_SCHEME))

    def edit(tensors: Tensors) -> None:
        for layer in range(2):
            for scale in ("k_scale", "v_scale"):
                tensors[f"model.layers.{layer}.self_attn.{scale}"] = torch.ones(1).bfloat16()

    change_tensors(folder, edit)


def add_config_to_16_bits(folder: Path) -> None:
    stated = json.loads((folder / CONFIG).read_text())["quantization_config"]
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "16-bit", folder)
    change_json(folder / CONFIG, lambda config: config.update(quantization_config=stated))


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
