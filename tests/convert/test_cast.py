"""Form only: what a 16-bit type holds is kept, what it does not hold is counted or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.cast import Cast
from convert.errors import TensorError
from convert.gguf_reader import read_gguf
from convert.job import convert
from convert.tensor import DTYPES as STORED
from convert.tensor import EPSILON, Block, finite_mask, round_to, to_float32
from convert.tensor import all_finite as nothing_but_finite
from tests.miniature import DTYPES, Shape, weights, write_checkpoint

SHAPE = Shape(hidden=64, intermediate=96, layers=1, heads=2, kv_heads=1)
NAME = "model.layers.0.mlp.up_proj.weight"


def block(tensor: torch.Tensor, first_row: int = 0) -> Block:
    dtype = next(name for name, kind in DTYPES.items() if kind == tensor.dtype)
    raw = tensor.reshape(tensor.shape[0], -1).contiguous().view(torch.uint8).numpy()
    return Block("w", dtype, first_row, raw.view(STORED[dtype].storage))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def all_finite(dtype: torch.dtype) -> torch.Tensor:
    """Every finite value of a 16-bit dtype, in 64 columns."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    return values[torch.isfinite(values)].reshape(-1, 64)


@pytest.mark.parametrize("source", ["BF16", "F16"])
@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
def test_every_16_bit_value_casts_as_torch_casts_it(source: str, target: str) -> None:
    values = all_finite(DTYPES[source])
    cast = values.to(DTYPES[target])
    fits = torch.isfinite(cast).all(dim=1)
    assert fits.all() or (source, target) == ("BF16", "F16")
    values, cast = values[fits], cast[fits]
    encoded = Cast(target).encode(block(values), None, None)
    assert encoded.parts[0].tobytes() == bits(cast)
    assert encoded.changed == int((cast.double() != values.double()).sum())
    assert (encoded.changed == 0) == (target in (source, "F32"))
    back = Cast(target).decode([encoded.parts[0].reshape(-1).view(np.uint8)], tuple(cast.shape))
    np.testing.assert_array_equal(back, cast.float().numpy())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["BF16", "F16"]))
def test_32_bit_patterns_cast_as_torch_casts_them(seed: int, target: str) -> None:
    raw = np.random.default_rng(seed).integers(0, 1 << 32, 4096, dtype=np.uint32)
    raw[::2] = raw[::2] % np.uint32(0x18000000) + np.uint32(0x30000000)  # about float16's range
    values = torch.from_numpy(raw.view(np.float32)).nan_to_num(0, 0, 0)
    values = values[torch.isfinite(values.to(DTYPES[target]))].reshape(1, -1)
    cast = values.to(DTYPES[target])
    encoded = Cast(target).encode(block(values), None, None)
    assert encoded.parts[0].tobytes() == bits(cast)
    assert encoded.changed == int((cast.double() != values.double()).sum())


@pytest.mark.parametrize(
    ("dtype", "value", "target", "fits"),
    [
        ("F32", 65519.99, "F16", True),
        ("F32", 65520.0, "F16", False),  # halfway to the next power of two: rounds to infinity
        ("BF16", -65536.0, "F16", False),
        ("F32", 3.3895e38, "BF16", True),
        ("F32", 3.3962e38, "BF16", False),
        ("BF16", 3.3895e38, "F32", True),
    ],
)
def test_overflow_names_tensor_row_and_column(
    dtype: str, value: float, target: str, fits: bool
) -> None:
    values = torch.zeros(3, 5)
    values[2, 4] = value
    if fits:
        Cast(target).encode(block(values.to(DTYPES[dtype]), 40), None, None)
        return
    with pytest.raises(TensorError, match=rf"w: .* at row 42, column 4 overflows {target}"):
        Cast(target).encode(block(values.to(DTYPES[dtype]), 40), None, None)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("target", ["BF16", "F16", "F32"])
def test_convert_says_how_many_values_changed(tmp_path: Path, dtype: str, target: str) -> None:
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, dtype=dtype, shards=2)
    (result,) = convert(str(source), tmp_path, [target], name="m").results
    expected = 0
    for tensor in weights(SHAPE, tied=False).values():
        stored = tensor.to(DTYPES[dtype])
        if stored.dim() > 1:  # norms are stored in 32 bits
            expected += int((stored.to(DTYPES[target]).double() != stored.double()).sum())
    assert result.artifact.values_changed == expected
    if target in (dtype, "F32"):
        assert expected == 0


def test_an_overflow_leaves_nothing_behind(tmp_path: Path) -> None:
    weight = weights(SHAPE, tied=False)[NAME].bfloat16()
    weight[7, 11] = 1e5
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, edit={NAME: weight})
    with pytest.raises(TensorError, match=rf"{NAME}: 99840 at row 7, column 11 overflows F16; use"):
        convert(str(source), tmp_path / "out", ["F32", "F16"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_large_norm_is_no_overflow(tmp_path: Path) -> None:
    norm = torch.full((64,), 1e5, dtype=torch.bfloat16)
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, edit={"model.norm.weight": norm})
    convert(str(source), tmp_path, ["F16"], name="m")
    stored = read_gguf(tmp_path / "m-F16.gguf").read("output_norm.weight")
    assert stored == bits(norm.float())


def test_widening_bf16_is_a_shift() -> None:
    raw = np.array([0x3F80, 0xC040, 0x0001], dtype=np.uint16)
    np.testing.assert_array_equal(to_float32(raw, "BF16"), np.float32([1, -3, 2.0**-133]))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_is_finite_and_how_far_apart(dtype: str) -> None:
    values = torch.tensor([0, -1, float("inf"), float("-inf"), float("nan")]).to(DTYPES[dtype])
    assert finite_mask(block(values[None]).raw, dtype).tolist() == [[True, True] + [False] * 3]
    assert EPSILON[dtype] == torch.finfo(DTYPES[dtype]).eps
    largest = np.float32([[torch.finfo(DTYPES[dtype]).max]])
    assert finite_mask(round_to(largest, dtype), dtype).all()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_16_bit_pattern_is_finite_or_not_as_ieee_says(dtype: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    raw = bits if dtype == "BF16" else bits.view(np.float16)
    finite = np.isfinite(torch.from_numpy(bits.view(np.int16)).view(DTYPES[dtype]).float().numpy())
    assert finite_mask(raw, dtype).tolist() == finite.tolist()
    assert [nothing_but_finite(raw[i : i + 1], dtype) for i in range(len(raw))] == finite.tolist()
    assert nothing_but_finite(raw[finite], dtype)
    assert nothing_but_finite(raw[:0], dtype)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_value_among_many_is_found(value: float) -> None:
    raw = np.random.default_rng(0).standard_normal((8, 96)).astype(np.float32)
    raw[0, 0], raw[0, 1] = np.finfo(np.float32).max, np.finfo(np.float32).min
    assert nothing_but_finite(raw, "F32")
    raw[7, 31] = value
    assert not nothing_but_finite(raw, "F32")
