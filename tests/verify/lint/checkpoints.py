"""Quantized checkpoints in the layouts that other tools write, and ways to break them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.families import write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer
from tests.peers import model_free_ptq

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
DATA_FREE = (
    "FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "W4A16", "W4A16_ASYM", "W8A16", "NVFP4A16", "MXFP4",
    "MXFP4A16", "MXFP8", "MXFP8A16",
)  # fmt: skip
"""What llmcompressor's data-free path writes."""
CALIBRATED = ("FP8", "FP8_KV", "NVFP4", "AUTOFP8", "DEEPSEEK")
"""What it does not write, made here of what it does, as fp8.md's tables give the layouts."""
OTHERS = ("MIXTRAL", "SHARDED", "NARROW")
E4M3 = torch.float8_e4m3fn
Tensors = dict[str, torch.Tensor]


def make(scheme: str, folder: Path) -> Path:
    """A clean checkpoint of a scheme; every file is readable by all."""
    source = folder / "source"
    if scheme == "MIXTRAL":
        write_tokenizer_folder(folder / "vocabulary")
        write_family(source, "mixtral", folder / "vocabulary", vocab_size=320, num_hidden_layers=1)
    elif scheme == "NARROW":
        write_checkpoint(source, shape=Shape(kv_heads=2))
    else:
        write_checkpoint(source, shards=3 if scheme == "SHARDED" else 1)
    out = folder / scheme
    made_of = {"DEEPSEEK": "FP8_BLOCK", "NARROW": "FP8_BLOCK", "NVFP4": "NVFP4A16"}
    ignore = ["lm_head", "model.embed_tokens", r"re:.*block_sparse_moe\.gate$"]
    name = scheme if scheme in DATA_FREE else made_of.get(scheme, "FP8_DYNAMIC")
    model_free_ptq(source, out, name, ignore if scheme == "MIXTRAL" else ignore[:2])
    if scheme in CALIBRATED:
        CHANGES[scheme](out, source)
    readable(out)
    return out


def write_tokenizer_folder(folder: Path) -> None:
    folder.mkdir()
    write_tokenizer(folder)


def readable(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o644)


def change_tensors(folder: Path, edit: Callable[[Tensors], Any], *, index: bool = True) -> None:
    """Load, edit and save a checkpoint of one shard; its index is written again."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    file.chmod(0o644)
    if index:
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        content = {
            "metadata": {"total_size": size},
            "weight_map": dict.fromkeys(tensors, file.name),
        }
        (folder / INDEX).write_text(json.dumps(content))


def change_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def change_quantization(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    change_json(folder / CONFIG, lambda config: edit(config["quantization_config"]))


def group(quantization: dict[str, Any]) -> dict[str, Any]:
    """The only config group."""
    (found,) = quantization["config_groups"].values()
    return found


def linears(tensors: Tensors) -> list[str]:
    return [n.removesuffix(".weight") for n in tensors if n.endswith("_proj.weight")]


def to_channel_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = (weight.float().abs().amax(dim=-1, keepdim=True) / 448).to(weight.dtype)
    return (weight.float() / scale.float()).clamp(-448, 448).to(E4M3), scale


def _per_tensor(
    folder: Path, source: Path, scale_dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """One scale a tensor, and a static scale of the input, as calibration leaves them."""
    weights = load_file(source / "model.safetensors")

    def edit(tensors: Tensors) -> None:
        for module in linears(tensors):
            weight = weights[f"{module}.weight"].float()
            scale = (weight.abs().max() / 448).to(scale_dtype)
            tensors[f"{module}.weight"] = (weight / scale.float()).clamp(-448, 448).to(E4M3)
            tensors[f"{module}.weight_scale"] = scale.reshape(shape)
            tensors[f"{module}.input_scale"] = torch.tensor(0.02, dtype=scale_dtype).reshape(shape)

    change_tensors(folder, edit)


def _fp8_static(folder: Path, source: Path) -> None:
    _per_tensor(folder, source, torch.bfloat16, (1,))

    def edit(quantization: dict[str, Any]) -> None:
        group(quantization)["weights"]["strategy"] = "tensor"
        group(quantization)["input_activations"] |= {"strategy": "tensor", "dynamic": False}

    change_quantization(folder, edit)


def _fp8_kv(folder: Path, source: Path) -> None:
    def scales(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("k_proj.weight")]:
            attention = name.removesuffix(".k_proj.weight")
            tensors[f"{attention}.k_scale"] = torch.tensor([0.03], dtype=torch.bfloat16)
            tensors[f"{attention}.v_scale"] = torch.tensor([0.02], dtype=torch.bfloat16)

    change_tensors(folder, scales)
    change_quantization(folder, lambda q: q.update(kv_cache_scheme=KV_SCHEME))


def _nvfp4(folder: Path, source: Path) -> None:
    def scales(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("weight_global_scale")]:
            other = name.replace("weight_global_scale", "input_global_scale")
            tensors[other] = torch.tensor([300.0])

    change_tensors(folder, scales)


def _autofp8(folder: Path, source: Path) -> None:
    _per_tensor(folder, source, torch.float32, ())
    stated = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    change_json(folder / CONFIG, lambda config: config.update(quantization_config=stated))


def _deepseek(folder: Path, source: Path) -> None:
    def rename(tensors: Tensors) -> None:
        for module in linears(tensors):
            tensors[f"{module}.weight_scale_inv"] = tensors.pop(f"{module}.weight_scale").float()

    change_tensors(folder, rename)
    stated = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }  # fmt: skip
    change_json(folder / CONFIG, lambda config: config.update(quantization_config=stated))


KV_SCHEME = {
    "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True,
}  # fmt: skip
CHANGES = {
    "FP8": _fp8_static,
    "FP8_KV": _fp8_kv,
    "NVFP4": _nvfp4,
    "AUTOFP8": _autofp8,
    "DEEPSEEK": _deepseek,
}
