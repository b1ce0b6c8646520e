"""Small ways to break a checkpoint folder; each edit is a function of the folder."""

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
    linears,
    to_channel_fp8,
)
from tests.verify.template_damage import GOOD


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


def with_templates(**templates: str) -> Callable[[Path], Any]:
    """Chat templates in tokenizer_config.json, by name."""
    named = [{"name": name, "template": text} for name, text in templates.items()]

    def edit(folder: Path) -> None:
        change_json(folder / "tokenizer_config.json", lambda c: c.update(chat_template=named))

    return edit


def tags_as_control_tokens(folder: Path) -> None:
    def edit(tokenizer: dict[str, Any]) -> None:
        for token in tokenizer["added_tokens"]:
            token["special"] = True

    change_json(folder / "tokenizer.json", edit)


def add_template_file(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(GOOD)
    (folder / "chat_template.jinja").chmod(0o644)


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
