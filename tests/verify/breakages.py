"""Ways to break an artifact on disk, and the check that is meant to catch each of them.

A breakage takes the reference's folder, the artifacts by target and an empty path, and leaves a
broken artifact there. What shows only as it runs stands in `run_breakages.py`, what it does wrong
while it answers in `test_behaviour.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from quantize.job import quantize
from tests.verify.damage import Edit, rewrite_gguf

Artifacts = dict[str, Path]
Make = Callable[[Path, Artifacts, Path], Path]
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
TOOL_USE, DEFAULT = "tokenizer.chat_template.tool_use", "tokenizer.chat_template"
TOOL_CALL = 263
CONTROL, NORMAL = 3, 1


@dataclass(frozen=True, slots=True)
class Breakage:
    """How to break it, the check that fails, and a word that one of its findings holds."""

    make: Make
    check: str
    named: str


def gguf_with(
    *, target: str = "Q8_0", fields: Edit | None = None, tensors: Edit | None = None
) -> Make:
    def make(reference: Path, artifacts: Artifacts, place: Path) -> Path:
        path = place.with_suffix(".gguf")
        return rewrite_gguf(artifacts[target], path, fields=fields, tensors=tensors)

    return make


def put(key: str, value: Any) -> Edit:
    return lambda values: values.__setitem__(key, value)


def drop(key: str) -> Edit:
    return lambda values: values.pop(key)


def put_item(key: str, index: int, value: Any) -> Edit:
    return lambda values: values[key].__setitem__(index, value)


def swap(a: str, b: str) -> Edit:
    def edit(values: dict[str, Any]) -> None:
        values[a], values[b] = values[b], values[a]

    return edit


def on_data(name: str, edit: Callable[[np.ndarray], None]) -> Edit:
    def apply(tensors: dict[str, Any]) -> None:
        edit(tensors[name][0])

    return apply


def unpermute(data: np.ndarray) -> None:
    """Undo the interleaving of the 32 rows of each head."""
    halves = data.reshape(-1, 16, 2, data.shape[-1]).swapaxes(1, 2)
    data[:] = halves.reshape(data.shape).copy()


def scale_of_a_row(data: np.ndarray) -> None:
    scales = data.reshape(data.shape[0], -1, 34)[7, :, :2]
    scales[:] = (np.ascontiguousarray(scales).view(np.float16) * 2).view(np.uint8)


def next_scale(data: np.ndarray) -> None:
    """Every row with the scale of the row before."""
    scales = data.reshape(data.shape[0], -1, 34)[:, :, :2]
    scales[:] = np.roll(scales, 1, axis=0)


def noise(data: np.ndarray) -> None:
    """An update of low rank, one part in ten of the weights' size."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(data.shape[0], 4)), rng.normal(size=(4, data.shape[1]))
    data += (0.1 * data.std() / 2 * a @ b).astype(np.float32)


def three_values(data: np.ndarray) -> None:
    """Three values a block of 32, by one scale: two bits."""
    blocks = data.reshape(-1, 32)
    scale = np.abs(blocks).max(1, keepdims=True)
    blocks[:] = np.round(blocks / scale) * scale


def cut_vocabulary(values: dict[str, Any]) -> None:
    for key in (TOKENS, TYPES):
        values[key] = values[key][:300]


def cut_rows(*names: str) -> Edit:
    def edit(tensors: dict[str, Any]) -> None:
        for name in names:
            data, kind = tensors[name]
            tensors[name] = (np.ascontiguousarray(data[:300]), kind)

    return edit


def second_bos(values: dict[str, Any]) -> None:
    values[TOOL_USE] = "{{ bos_token }}" + values[TOOL_USE]


def stretched(values: dict[str, Any]) -> None:
    """A context made longer by a header alone, as guides for older models advise."""
    values["llama.rope.scaling.type"] = "yarn"
    values["llama.rope.scaling.factor"] = 4.0


def edit_template(values: dict[str, Any]) -> None:
    values[TOOL_USE] = values[TOOL_USE].replace("{{ m.content", "{{  m.content", 1)


def trained_further(
    reference: Path, artifacts: Artifacts, place: Path, target: str = "Q8_0"
) -> Path:
    """An artifact of another checkpoint: one layer is from a later step."""
    folder = Path(shutil.copytree(reference, place / "later"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name] + 0.02 * torch.randn(
        tensors[name].shape, generator=torch.Generator().manual_seed(0)
    ).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")
    quantize(str(folder), place, [target], name="m")
    return place / ("m-Q8_0.gguf" if target == "Q8_0" else f"m-{target}")


def folder_with(
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    files: Callable[[Path], Any] | None = None,
    target: str | None = "FP8_DYNAMIC",
) -> Make:
    """A folder with something changed: an artifact, or without a target the reference itself."""

    def make(reference: Path, artifacts: Artifacts, place: Path) -> Path:
        folder = Path(shutil.copytree(artifacts[target] if target else reference, place))
        if tensors is not None:
            stored = load_file(folder / "model.safetensors")
            tensors(stored)
            save_file(stored, folder / "model.safetensors")
            (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        if files is not None:
            files(folder)
        return folder

    return make


def edit_json(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def multiply(name: str, factor: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda stored: stored.update({name: (stored[name].float() * factor).bfloat16()})


def one_row(stored: dict[str, torch.Tensor]) -> None:
    scale = stored[f"{MLP}_scale"].clone()
    scale[7] = scale[7] * 1.5
    stored[f"{MLP}_scale"] = scale


def swap_matrices(stored: dict[str, torch.Tensor]) -> None:
    for suffix in ("", "_scale"):
        a, b = f"{MLP}{suffix}", f"{MLP.replace('layers.0', 'layers.1')}{suffix}"
        stored[a], stored[b] = stored[b].clone(), stored[a].clone()


def add_token(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 300, "content": "<x>"})


def drop_tool_use(content: dict[str, Any]) -> None:
    content["chat_template"] = [t for t in content["chat_template"] if t["name"] == "default"]


def line_before_bos(values: dict[str, Any]) -> None:
    """A line break before the template's BOS: llama-server then takes none of the two off."""
    values[TOOL_USE] = "{{ '\\n' }}" + values[TOOL_USE]


def add_file(name: str, text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return apply


def system_prompt(content: dict[str, Any]) -> None:
    """Every template of a folder has words of its own after its BOS."""
    for entry in content["chat_template"]:
        entry["template"] = entry["template"].replace(
            "{{ bos_token }}", "{{ bos_token }}Be good.", 1
        )


Q, MLP = "blk.0.attn_q.weight", "model.layers.0.mlp.down_proj.weight"
BREAKAGES = {
    "two tensors swapped": Breakage(
        gguf_with(tensors=swap("blk.0.ffn_up.weight", "blk.1.ffn_up.weight")),
        "gguf_weights", "blk.1.ffn_up.weight",
    ),
    "gate and up swapped": Breakage(
        gguf_with(tensors=swap("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight")),
        "gguf_weights", "blk.0.ffn_gate.weight",
    ),
    "Q not permuted": Breakage(gguf_with(tensors=on_data(Q, unpermute)), "gguf_weights", Q),
    "K not permuted": Breakage(
        gguf_with(tensors=on_data("blk.1.attn_k.weight", unpermute)),
        "gguf_weights", "blk.1.attn_k.weight",
    ),
    "scale doubled in one row": Breakage(
        gguf_with(tensors=on_data(Q, scale_of_a_row)), "gguf_weights", "row 7 ",
    ),
    "scales shifted by a row": Breakage(
        gguf_with(tensors=on_data(Q, next_scale)), "gguf_weights", Q,
    ),
    "noise the size of an adapter": Breakage(
        gguf_with(target="F32", tensors=on_data("blk.1.ffn_down.weight", noise)),
        "gguf_weights", "blk.1.ffn_down.weight",
    ),
    "a stale shard: a layer of another checkpoint": Breakage(
        trained_further, "gguf_weights", "blk.1.ffn_up.weight"
    ),
    "a matrix at two bits in a file of eight": Breakage(
        gguf_with(target="F32", tensors=on_data("blk.1.ffn_down.weight", three_values)),
        "gguf_weights", "blk.1.ffn_down.weight",
    ),
    "norms swapped": Breakage(
        gguf_with(tensors=swap("blk.0.attn_norm.weight", "blk.1.attn_norm.weight")),
        "gguf_weights", "blk.0.attn_norm.weight",
    ),
    "rope_freqs with other values": Breakage(
        gguf_with(tensors=on_data("rope_freqs.weight", lambda data: data.fill(1.0))),
        "gguf_weights", "rope_freqs.weight",
    ),
    "rope_freqs missing": Breakage(
        gguf_with(tensors=drop("rope_freqs.weight")), "structure", "rope_freqs.weight"
    ),
    "wrong rope base": Breakage(
        gguf_with(fields=put("llama.rope.freq_base", 10000.0)), "structure", "freq_base"
    ),
    "wrong number of KV heads": Breakage(
        gguf_with(fields=put("llama.attention.head_count_kv", 8)), "structure", "head_count_kv"
    ),
    "wrong rope.dimension_count": Breakage(
        gguf_with(fields=put("llama.rope.dimension_count", 16)), "structure", "dimension_count"
    ),
    "wrong length of keys": Breakage(
        gguf_with(fields=put("llama.attention.key_length", 64)), "structure", "key_length"
    ),
    "wrong vocab_size": Breakage(
        gguf_with(fields=put("llama.vocab_size", 300)), "structure", "vocab_size"
    ),
    "a rope scaling added": Breakage(
        gguf_with(fields=stretched), "structure", "rope.scaling.factor: is 4.0"
    ),
    "a sliding window added": Breakage(
        gguf_with(fields=put("llama.attention.sliding_window", 512)),
        "structure", "sliding_window: is 512",
    ),
    "sampling settings of another model": Breakage(
        gguf_with(fields=put("general.sampling.top_p", 0.5)), "structure", "sampling.top_p"
    ),
    "the head left out": Breakage(
        gguf_with(tensors=drop("output.weight")), "structure", "output.weight"
    ),
    "a layer left out": Breakage(
        gguf_with(fields=put("llama.block_count", 1)), "structure", "block_count"
    ),
    "tool_use template dropped": Breakage(gguf_with(fields=drop(TOOL_USE)), "templates", TOOL_USE),
    "template edited by one character": Breakage(
        gguf_with(fields=edit_template), "templates", TOOL_USE
    ),
    "the vocabulary cut short": Breakage(
        gguf_with(fields=cut_vocabulary), "tokens", "300 entries, the reference's has 320"
    ),
    "embedding and head cut short": Breakage(
        gguf_with(tensors=cut_rows("token_embd.weight", "output.weight")),
        "structure", "token_embd.weight: shape [300,",
    ),
    "a template that writes BOS twice": Breakage(
        gguf_with(fields=second_bos), "templates", TOOL_USE
    ),
    "templates swapped": Breakage(gguf_with(fields=swap(TOOL_USE, DEFAULT)), "templates", DEFAULT),
    "<tool_call> made a control token": Breakage(
        gguf_with(fields=put_item(TYPES, TOOL_CALL, CONTROL)), "tokens", "'<tool_call>'"
    ),
    "<tool_call> made an ordinary token": Breakage(
        gguf_with(fields=put_item(TYPES, TOOL_CALL, NORMAL)), "tokens", "'<tool_call>'"
    ),
    "an added token missing": Breakage(
        gguf_with(fields=put_item(TOKENS, TOOL_CALL, "[PAD263]")), "tokens", "'<tool_call>'"
    ),
    "BOS no longer added": Breakage(
        gguf_with(fields=put("tokenizer.ggml.add_bos_token", False)), "tokens", "add_bos_token"
    ),
    "a tag spelt otherwise": Breakage(
        gguf_with(fields=put_item(TOKENS, TOOL_CALL, "<tool-call>")), "tokens", "ids differ"
    ),
    "EOS of another model": Breakage(
        gguf_with(fields=put("tokenizer.ggml.eos_token_id", 258)), "tokens", "eos_token_id"
    ),
    "BOS of another model": Breakage(
        gguf_with(fields=put("tokenizer.ggml.bos_token_id", 258)), "tokens", "bos_token_id"
    ),
    "merges of another model": Breakage(
        gguf_with(fields=put("tokenizer.ggml.merges", ["t i"])), "tokens", "ids differ"
    ),
    "FP8: a scale of one row off by half": Breakage(folder_with(one_row), "weights", "row 7 "),
    "FP8: scales tenfold": Breakage(folder_with(multiply(f"{MLP}_scale", 10)), "weights", MLP),
    "FP8: two matrices swapped": Breakage(folder_with(swap_matrices), "weights", MLP),
    "FP8: a norm that was retrained": Breakage(
        folder_with(multiply("model.norm.weight", 1.1)), "weights", "model.norm.weight"
    ),
    "FP8: a scale lost": Breakage(
        folder_with(lambda stored: stored.pop(f"{MLP}_scale")), "structure", f"{MLP}_scale"
    ),
    "FP8: config with another rope base": Breakage(
        folder_with(files=edit_json("config.json", lambda c: c.update(rope_theta=1e4))),
        "structure", "rope_theta",
    ),
    "FP8: config that ties the head": Breakage(
        folder_with(files=edit_json("config.json", lambda c: c.update(tie_word_embeddings=True))),
        "structure", "tie_word_embeddings",
    ),
    "FP8: tool_use template dropped": Breakage(
        folder_with(files=edit_json("tokenizer_config.json", drop_tool_use)),
        "tokens", "tokenizer_config.json",
    ),
    "FP8: a token added": Breakage(
        folder_with(files=edit_json("tokenizer.json", add_token)), "tokens", "tokenizer.json"
    ),
    "add_bos_token left out": Breakage(
        gguf_with(fields=drop("tokenizer.ggml.add_bos_token")),
        "tokens", "add_bos_token: missing",
    ),
    "replies that end at <tool_call>": Breakage(
        gguf_with(fields=put("tokenizer.ggml.eot_token_id", TOOL_CALL)),
        "tokens", "'<tool_call>'): llama.cpp ends a reply at it: it is",
    ),
    "a template added": Breakage(
        gguf_with(fields=put("tokenizer.chat_template.rag", "{{ messages[0].content }}")),
        "templates", "tokenizer.chat_template.rag: the reference has none of this name",
    ),
    "an EOS after every prompt": Breakage(
        gguf_with(fields=put("tokenizer.ggml.add_eos_token", True)),
        "rendering", "reference [], artifact [260]",
    ),
    "no BOS before a prompt": Breakage(
        gguf_with(fields=lambda values: values.update({
            TOOL_USE: values[TOOL_USE].replace("{{ bos_token }}", "", 1),
            "tokenizer.ggml.add_bos_token": False,
        })),
        "rendering", "begins without a BOS token (257)",
    ),
    "two BOS before a prompt": Breakage(
        gguf_with(fields=second_bos), "rendering", "begins with two BOS tokens (257)"
    ),
    "a prompt that begins before its BOS": Breakage(
        gguf_with(fields=line_before_bos), "rendering", "ids differ from place 1"
    ),
    "a template that never ends": Breakage(
        gguf_with(fields=put(TOOL_USE, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")),
        "rendering", "it calls itself without end",
    ),
    "FP8: a chat_template.jinja added, which wins": Breakage(
        folder_with(files=add_file("chat_template.jinja", "{{ messages[0].content }}")),
        "templates", "template 'default': is not the reference's template",
    ),
    "FP8: a tool_use.jinja added, which wins": Breakage(
        folder_with(files=add_file("additional_chat_templates/tool_use.jinja", "{{ tools }}")),
        "templates", "template 'tool_use': is not the reference's template",
    ),
    "FP8: a system prompt added to the templates": Breakage(
        folder_with(files=edit_json("tokenizer_config.json", system_prompt)),
        "rendering", "ids differ from place 1",
    ),
    "FP8: an adapter laid over it": Breakage(
        folder_with(files=add_file("adapter_config.json", "{}")),
        "tokens", "adapter_config.json: the source has none",
    ),
    "FP8: another EOS for generation": Breakage(
        folder_with(files=edit_json("generation_config.json", put("eos_token_id", 258))),
        "tokens", "generation_config.json",
    ),
}  # fmt: skip
