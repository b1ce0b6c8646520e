"""The rules of a family: every tensor has one name on each side, and none is left out."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest

from convert.errors import TensorError, UnsupportedError
from convert.families import family_of
from convert.families.llama import LLAMA
from convert.families.rules import LINEAR_ROLES, Family, Rule
from convert.model_spec import ModelSpec, read_model_spec
from convert.tensor import TensorInfo
from tests.miniature import Shape, config, weights

SHAPE = Shape(layers=3, kv_heads=2)


def spec(folder: Path, *, tied: bool = False) -> ModelSpec:
    path = folder / "config.json"
    path.write_text(json.dumps(config(SHAPE, tied=tied)))
    return read_model_spec(path)


def infos(*, tied: bool = False) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(name, "BF16", tuple(tensor.shape), "m.safetensors", 0)
        for name, tensor in weights(SHAPE, tied=tied).items()
    }


def names(rule: Rule) -> list[tuple[str, str | None]]:
    return [(rule.hf.format(layer=i), rule.gguf and rule.gguf.format(layer=i)) for i in range(130)]


def test_the_map_of_names_is_one_to_one() -> None:
    pairs = {pair for rule in LLAMA.rules for pair in names(rule)}
    kept = {hf: ours for hf, ours in pairs if ours is not None}
    assert len(pairs) == len({hf for hf, _ in pairs})
    assert len(kept) == len(set(kept.values()))
    inverse = {ours: hf for hf, ours in kept.items()}
    assert {hf: ours for ours, hf in inverse.items()} == kept


def test_every_tensor_matches_one_rule_only(tmp_path: Path) -> None:
    for rule in LLAMA.rules:
        for hf, _ in names(rule)[:12]:
            family = Family("f", (), "f", tuple(r for r in LLAMA.rules if r is not rule))
            with pytest.raises(TensorError, match="no tensor of this name"):
                family.recognise(spec(tmp_path), {hf: TensorInfo(hf, "F32", (1,), "m", 0)})


def test_names_are_gguf_s_own() -> None:
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 130)
    for rule in LLAMA.rules:
        for hf, ours in names(rule):
            if ours is not None:
                assert theirs.get_name(hf, (".weight", ".bias")) == ours, hf


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_checkpoint_must_have(tmp_path: Path, tied: bool) -> None:
    required = [name for name, _ in LLAMA.required(spec(tmp_path, tied=tied))]
    assert len(required) == len(set(required))
    assert set(required) == infos(tied=tied).keys()


def test_recognised_in_file_order_with_layer_and_role(tmp_path: Path) -> None:
    tensors = infos()
    found = LLAMA.recognise(spec(tmp_path), tensors)
    assert [tensor.info.name for tensor in found] == list(tensors)
    by_name = {tensor.gguf_name: tensor for tensor in found}
    assert by_name["blk.2.attn_k.weight"].layer == 2
    assert by_name["blk.2.attn_k.weight"].rule.role == "attn_k"
    assert by_name["token_embd.weight"].layer is None
    roles = [tensor.rule.role for tensor in found]
    assert all(roles.count(role) == SHAPE.layers for role in LINEAR_ROLES)
    interleaved = {tensor.rule.role for tensor in found if tensor.rule.interleave}
    assert interleaved == {"attn_q", "attn_k"}


def test_a_tied_model_may_still_store_its_head(tmp_path: Path) -> None:
    found = LLAMA.recognise(spec(tmp_path, tied=True), infos())
    assert "output.weight" in {tensor.gguf_name for tensor in found}


def test_rotary_frequencies_of_old_checkpoints_are_dropped(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors = infos() | {name: TensorInfo(name, "F32", (16,), "m", 0)}
    (dropped,) = [t for t in LLAMA.recognise(spec(tmp_path), tensors) if t.gguf_name is None]
    assert dropped.info.name == name


def test_biases_are_optional_and_shaped_as_rows(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.bias"
    right = {name: TensorInfo(name, "BF16", (64,), "m", 0)}
    found = {t.gguf_name for t in LLAMA.recognise(spec(tmp_path), infos() | right)}
    assert "blk.1.attn_k.bias" in found
    wrong = {name: TensorInfo(name, "BF16", (256,), "m", 0)}
    with pytest.raises(TensorError, match=r"\[256\] in m, but config.json asks for \[64\] \(kv\)"):
        LLAMA.recognise(spec(tmp_path), infos() | wrong)


def test_an_unknown_architecture_lists_the_known(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(SHAPE, tied=False) | {"architectures": ["X", "Y"]}))
    with pytest.raises(UnsupportedError, match="'X' is not supported; known: LlamaForCausalLM"):
        family_of(read_model_spec(path))
