"""From checkpoint to GGUF: the Q/K permutation, rope factors, order, and every value kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.gguf import Field
from convert.gguf_plan import quantized_fields, quantized_order, rope_factors
from convert.gguf_reader import read_gguf
from convert.job import convert
from convert.model import open_model
from convert.model_spec import RopeScaling, read_model_spec
from convert.output_tensor import HeadInterleave
from tests.miniature import DTYPES, Shape, change_json, config, weights, write_checkpoint

SHAPE = Shape(hidden=192, intermediate=64, layers=12, heads=6, kv_heads=2, vocab=300)


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's `LlamaModel.permute` (conversion/llama.py, MIT), word for word."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 70))
def test_head_interleave_is_llama_cpp_s_permutation(heads: int, half: int) -> None:
    rows = torch.arange(heads * 2 * half).reshape(-1, 1)
    order = HeadInterleave(2 * half).order(len(rows))
    assert torch.equal(rows[torch.from_numpy(order)], permute(rows, heads))


def test_head_interleave_of_a_small_head_by_hand() -> None:
    assert HeadInterleave(6).order(12).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def torch_rope_factors(
    base: float, dim: int, factor: float, low: float, high: float, old: int
) -> torch.Tensor:
    """llama.cpp's `LlamaModel.generate_extra_tensors` (conversion/llama.py, MIT)."""
    freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    factors = []
    for freq in freqs:
        wavelen = 2 * math.pi / freq
        if wavelen < old / high:
            factors.append(1)
        elif wavelen > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelen - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors, dtype=torch.float32)


def factors(folder: Path, head_dim: int, base: float, *scaling: float) -> np.ndarray:
    path = folder / "config.json"
    path.write_text(json.dumps(config(Shape(), tied=False)))
    rope = RopeScaling(*scaling[:3], original_max_position_embeddings=int(scaling[3]))
    spec = replace(read_model_spec(path), head_dim=head_dim, rope_theta=base, rope_scaling=rope)
    return np.array(rope_factors(spec), dtype=np.float32).view(np.int32)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        (500000.0, 8.0, 1.0, 4.0, 8192),  # Llama 3.1
        (500000.0, 32.0, 1.0, 4.0, 8192),  # Llama 3.2
        (10000.0, 8.0, 1.0, 4.0, 512),  # hermes-nano
        (500000.0, 8.0, 1.0, 4.0, 512),  # the miniature
    ],
)
def test_rope_factors_equal_torch_s_in_every_bit(
    tmp_path: Path, head_dim: int, scaling: tuple[float, ...]
) -> None:
    theirs = torch_rope_factors(scaling[0], head_dim, *scaling[1:]).view(torch.int32).numpy()
    assert len(set(theirs.tolist())) > 2  # kept, divided and blended
    np.testing.assert_array_equal(factors(tmp_path, head_dim, *scaling), theirs)


@pytest.mark.parametrize("head_dim", [48, 80, 96, 256])
@pytest.mark.parametrize(
    "scaling",
    [
        (10000.0, 3.7, 1.3, 5.9, 1000),
        (1e6, 16.0, 0.5, 32.0, 4096),
        (283461213.0, 8.0, 1.0, 4.0, 8192),  # a base that float32 does not hold
    ],
)
def test_rope_factors_of_odd_models_differ_in_their_last_bits_at_most(
    tmp_path: Path, head_dim: int, scaling: tuple[float, ...]
) -> None:
    theirs = torch_rope_factors(scaling[0], head_dim, *scaling[1:]).view(torch.int32).numpy()
    np.testing.assert_allclose(factors(tmp_path, head_dim, *scaling), theirs, rtol=0, atol=8)


def test_both_dialects_of_rope_in_config_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(Shape(), tied=False)))
    old = read_model_spec(path)
    parameters = {**config(Shape(), tied=False)["rope_scaling"], "rope_theta": 500000.0}
    change_json(path, rope_scaling=None, rope_theta=None, rope_parameters=parameters)
    assert read_model_spec(path) == old
    assert old.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 512)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_value_is_in_the_file_and_q_and_k_in_their_order(
    tmp_path: Path, dtype: str, tied: bool
) -> None:
    bias = torch.randn(64, generator=torch.Generator().manual_seed(5)).to(DTYPES[dtype])
    edit = {"model.layers.3.self_attn.k_proj.bias": bias}
    source = write_checkpoint(
        tmp_path / "s", shape=SHAPE, dtype=dtype, tied=tied, shards=2, edit=edit
    )
    convert(str(source), tmp_path, [dtype], name="m")
    file = read_gguf(tmp_path / f"m-{dtype}.gguf")
    expected = {n: t.to(DTYPES[dtype]) for n, t in weights(SHAPE, tied=tied).items()} | edit
    with open_model(str(source)) as opened:
        names = {t.info.name: t.gguf_name for t in opened.tensors}
    assert names.keys() == expected.keys()
    assert {*file.tensors} == {*names.values(), "rope_freqs.weight"}
    for name, tensor in expected.items():
        stored = file.tensors[names[name]]
        if ".q_proj." in name or ".k_proj." in name:
            tensor = permute(tensor, SHAPE.heads if ".q_proj." in name else SHAPE.kv_heads)
        if tensor.dim() == 1:
            tensor = tensor.float()
        kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[tensor.dtype]
        assert (stored.ggml_type, stored.shape) == (kind, tuple(tensor.shape)), name
        assert file.read(stored.name) == tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_the_converter_writes_in_shard_order_and_llama_quantize_by_layer(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, shards=2)
    with open_model(str(source)) as opened:
        tensors = [output.tensor for output in opened.gguf_outputs()]
        in_shards = [opened.checkpoint.shards.index(t.sources[0].tensor.file) for t in tensors[1:]]
    names = [tensor.name for tensor in tensors]
    assert names[0] == "rope_freqs.weight"
    assert in_shards == sorted(in_shards)
    ordered = [tensor.name for tensor in quantized_order(tensors)]
    assert ordered[:4] == [
        "output.weight",
        "output_norm.weight",
        "rope_freqs.weight",
        "token_embd.weight",
    ]
    layers = [int(name.split(".")[1]) for name in ordered[4:]]
    assert layers == sorted(layers)  # 2 before 10
    assert ordered[4:13] == sorted(ordered[4:13])


def test_file_type_and_version_move_to_the_end() -> None:
    fields = [
        Field("general.file_type", "u32", 32),
        Field("a", "u32", 1),
        Field("general.quantization_version", "u32", 2),
        Field("b", "u32", 2),
    ]
    moved = quantized_fields(fields, 15)
    assert [(f.key, f.value) for f in moved] == [
        ("a", 1),
        ("b", 2),
        ("general.quantization_version", 2),
        ("general.file_type", 15),
    ]


def test_a_local_folder_s_name_is_in_no_file(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "Secret-Project", shape=SHAPE)
    job = convert(str(source), tmp_path / "out", ["BF16"])
    assert job.name == "Secret-Project"
    (path,) = (tmp_path / "out").glob("*.gguf")
    assert b"Secret" not in path.read_bytes()
    assert "general.name" not in read_gguf(path).fields


def test_the_card_s_name_is_used_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", shape=SHAPE)
    card = "---\nmodel-index:\n- name: Hermes 9 / Nano\nlicense: mit\ntags: [a, b]\n---\nText.\n"
    (source / "README.md").write_text(card)
    convert(str(source), tmp_path / "out", ["BF16"])
    fields = read_gguf(tmp_path / "out" / "Hermes-9-Nano-BF16.gguf").fields
    assert fields["general.name"] == "Hermes 9 / Nano"
    assert fields["general.license"] == "mit"
    assert fields["general.tags"] == ["a", "b"]
    convert(str(source), tmp_path / "out", ["BF16"], name="Mine")
    assert read_gguf(tmp_path / "out" / "Mine-BF16.gguf").fields["general.name"] == "Mine"
