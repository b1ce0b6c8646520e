"""ggml's kernels through ctypes: blocks worked by hand, errors bounded, bad weights refused."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from convert.errors import TensorError
from convert.output_tensor import Importance
from convert.tensor import Block
from quantize.ggml import Ggml, library_digest
from quantize.job import quantize
from tests.miniature import DTYPES, Shape, weights, write_checkpoint

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K")
"""Every type a mixture or its fallback can choose, finest first."""


def block(values: np.ndarray, first_row: int = 0) -> Block:
    return Block("w", "F32", first_row, np.atleast_2d(values).astype(np.float32))


def encode(name: str, values: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    weights_ = None if importance is None else Importance("d", importance.reshape(1, -1))
    (out,) = Ggml(name).encode(block(values), None, weights_).parts
    return out


def random_rows(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_t(4, (rows, columns)).astype(np.float32) * 0.02


def test_a_q8_0_block_by_hand() -> None:
    # absmax 127, so the scale is 1 and a code is the value rounded, halves away from zero
    values = np.zeros(32, dtype=np.float32)
    values[:8] = [-127, 0.5, -0.5, 1.5, 2.5, -2.5, 126.49, 0.49]
    codes = [-127, 1, -1, 2, 3, -3, 126, 0, *[0] * 24]
    assert encode("Q8_0", values).tobytes() == struct.pack("<e32b", 1.0, *codes)


def test_the_scale_of_a_q8_0_block_is_rounded_to_half_precision() -> None:
    values = np.full(32, 0.1, dtype=np.float32)
    (scale,) = struct.unpack("<e", encode("Q8_0", values).tobytes()[:2])
    assert scale == np.float16(np.float32(0.1) / np.float32(127))


@pytest.mark.parametrize("name", TYPES)
def test_zeros_stay_zeros(name: str) -> None:
    out = encode(name, np.zeros((2, 256)))
    assert not out.any() or name == "Q5_0"  # Q5_0 stores zero as code 16 with scale 0
    np.testing.assert_array_equal(Ggml(name).decode([out], (2, 256)), np.zeros((2, 256)))


@pytest.mark.parametrize("name", TYPES)
def test_decode_equals_gguf_s_own(name: str) -> None:
    out = encode(name, random_rows(7, 512))
    kind = gguf.GGMLQuantizationType[name]
    np.testing.assert_array_equal(
        Ggml(name).decode([out], (7, 512)), gguf.quants.dequantize(out, kind)
    )


def test_q8_0_equals_gguf_s_own() -> None:
    values = random_rows(64, 288)
    theirs = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(encode("Q8_0", values), theirs)


def test_errors_grow_as_bits_shrink() -> None:
    values = random_rows(64, 1024)
    errors = []
    for name in ("Q8_0", "Q6_K", "Q5_K", "Q4_K"):
        back = Ggml(name).decode([encode(name, values)], values.shape)
        errors.append(float(np.sqrt(np.mean((back - values) ** 2) / np.mean(values**2))))
    assert errors == sorted(errors)
    assert errors[0] < 0.008
    assert 0.04 < errors[3] < 0.09


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (2, 64), elements=st.floats(-100, 100, width=32)))
def test_q8_0_is_off_by_half_a_step_at_most(values: np.ndarray) -> None:
    back = Ggml("Q8_0").decode([encode("Q8_0", values)], values.shape)
    step = np.abs(values).reshape(2, 2, 32).max(axis=2, keepdims=True) / 127
    # half a step, and what rounding the scale to half precision moves 127 of them by
    allowed = step * (0.5 + 127 * 2**-11) * (1 + 1e-5) + 128 * 2.0**-25
    assert (np.abs(back - values).reshape(2, 2, 32) <= allowed).all()


@pytest.mark.parametrize("name", TYPES)
def test_rows_do_not_depend_on_their_block(name: str) -> None:
    values = random_rows(9, 512)
    whole = encode(name, values)
    parts = [encode(name, values[start : start + 4]) for start in range(0, 9, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    backwards = Block("w", "F32", 0, values[::-1])  # not contiguous
    np.testing.assert_array_equal(Ggml(name).encode(backwards, None, None).parts[0], whole[::-1])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_16_bit_rows_are_widened_exactly(dtype: str) -> None:
    raw = torch.from_numpy(random_rows(4, 256)).to(DTYPES[dtype])
    storage = np.uint16 if dtype == "BF16" else np.float16
    stored = raw.view(torch.int16).numpy().view(storage)
    (out,) = Ggml("Q6_K").encode(Block("w", dtype, 0, stored), None, None).parts
    np.testing.assert_array_equal(out, encode("Q6_K", raw.float().numpy()))


def test_importance_matters_and_must_fit() -> None:
    values, importance = random_rows(4, 256), np.linspace(0.1, 9, 256, dtype=np.float32)
    assert not np.array_equal(encode("Q4_K", values, importance), encode("Q4_K", values))
    wide = np.stack([importance, importance], axis=1)[:, 0]  # not contiguous, same values
    np.testing.assert_array_equal(encode("Q4_K", values, wide), encode("Q4_K", values, importance))
    with pytest.raises(AssertionError):
        encode("Q4_K", values, importance[:-1])


@pytest.mark.parametrize("name", TYPES)
def test_a_scale_that_becomes_infinite_is_an_error(name: str) -> None:
    values = random_rows(3, 256)
    values[1, 9] = 1e10
    with pytest.raises(TensorError, match=rf"w: rows from 40 on do not fit into {name}.*infinite"):
        Ggml(name).encode(block(values, first_row=40), None, None)


@pytest.mark.parametrize(("largest", "fits"), [(127 * 65519.0, True), (127 * 65521.0, False)])
def test_q8_0_ends_where_its_scale_leaves_half_precision(largest: float, fits: bool) -> None:
    values = np.full((1, 32), largest, dtype=np.float32)
    if fits:
        assert encode("Q8_0", values).tobytes()[:2] == struct.pack("<e", 65504.0)
    else:
        with pytest.raises(TensorError, match="too large"):
            encode("Q8_0", values)


@pytest.mark.parametrize(
    "target", ["FP8_DYNAMIC", "Q8_0", "Q4_K_M", "IQ4_NL", "F32", "F16", "BF16"]
)
@pytest.mark.parametrize(("dtype", "value"), [("BF16", "nan"), ("F16", "-inf"), ("F32", "inf")])
def test_weights_that_are_not_finite_are_refused(
    tmp_path: Path, target: str, dtype: str, value: str
) -> None:
    name, shape = "model.layers.0.mlp.down_proj.weight", Shape(layers=1)
    weight = weights(shape, tied=False)[name].to(DTYPES[dtype])
    weight[200, 17] = float(value)
    source = write_checkpoint(tmp_path / "s", shape=shape, dtype=dtype, edit={name: weight})
    with pytest.raises(TensorError, match=rf"{name}: {value} at row 200, column 17.*finite"):
        quantize(str(source), tmp_path / "out", [target])
    assert list((tmp_path / "out").iterdir()) == []


def test_the_profile_names_the_library() -> None:
    library = Path(gguf.__file__).parents[1] / "llama_cpp" / "lib" / "libggml-base.so"
    if not library.is_file():
        pytest.skip("llama-cpp-python lies elsewhere or has another library name here")
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    assert library_digest() == digest
    assert Ggml("Q4_K").numerics == f"libggml-base sha256:{digest}"
