"""Every file of the FP8 folder equals what llm-compressor's model_free_ptq writes on the CPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from benchmarks.conformance_vllm import DENSE
from convert.checkpoint import RECIPE_NAME
from convert.errors import TensorError, UnsupportedError
from convert.memory import WORKING_BYTES_PER_VALUE
from convert.model import open_model
from convert.plan import plan_run
from convert.run import run
from convert.tensor import Block
from quantize.compressed_table import TARGETS
from quantize.fp4 import Mxfp4
from quantize.fp8 import decode_e4m3, encode_e4m3
from quantize.gguf_targets import Options
from quantize.job import planners, quantize
from quantize.scaled import NUMERICS
from tests.families import write_family
from tests.miniature import DTYPES, Shape, change_json, weights, write_checkpoint, write_tokenizer
from tests.peers import model_free_ptq

NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"
DTYPE_STORAGE = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
ROW = "model.layers.0.mlp.gate_proj.weight"


def assert_identical(source: Path, tmp_path: Path, target: str = "FP8_DYNAMIC") -> Path:
    """Quantize both ways and compare every file; our folder."""
    quantize(str(source), tmp_path / "out", [target], name="m")
    ours = tmp_path / "out" / f"m-{target}"
    theirs = model_free_ptq(source, tmp_path / "theirs", target)
    names = {str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()}
    found = {str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file()}
    assert found == names | {"hermes-quant.json"}
    for name in names:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    return ours


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("tied", "shards"), [(False, 1), (True, 3)])
def test_source_dtypes_tied_and_sharded(
    tmp_path: Path, dtype: str, tied: bool, shards: int
) -> None:
    source = write_checkpoint(tmp_path / "source", dtype=dtype, tied=tied, shards=shards)
    (source / "README.md").write_text("---\nlicense: llama3\n---\nCard, gr\u00fcn.\n")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    change_json(source / "config.json", note="\u00e9\u2028 <tag>")  # how JSON is escaped shows
    assert_identical(source, tmp_path)


def awkward_rows(dtype: str, columns: int) -> torch.Tensor:
    """Rows that trip a careless scale or rounding."""
    info = torch.finfo(DTYPES[dtype])
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(16, columns, generator=generator, dtype=torch.float64) * 0.02
    rows[0] = 0.0
    rows[1] = -0.0
    rows[2] = info.tiny * info.eps  # the smallest subnormal
    rows[3] = torch.linspace(-1, 1, columns, dtype=torch.float64) * info.tiny  # all subnormal
    rows[4] = info.tiny * 448  # the scale is the smallest normal number
    rows[5, 7] = info.max  # one huge outlier
    rows[6] = info.max
    rows[7, 0] = -3e4
    rows[8] = torch.arange(columns, dtype=torch.float64) / 8  # many ties
    rows[9] = 448.0
    rows[10] = 449.0
    rows[11] = info.tiny * info.eps * 224  # absmax / 448 lies in the middle of two values
    rows[12] = 0.0
    rows[12, -1] = info.tiny * info.eps
    return rows.to(DTYPES[dtype])


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "FP8_DYNAMIC"])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_every_scheme(tmp_path: Path, dtype: str, target: str) -> None:
    shape = Shape(layers=1)
    awkward = weights(shape, tied=False)[ROW].to(DTYPES[dtype])
    awkward[:16] = awkward_rows(dtype, shape.hidden)
    if target in ("FP8_TENSOR", "NVFP4A16"):  # one scale for all: leave the outliers to others
        awkward[:16] *= 0 if dtype == "F16" else 1e-3
    if target not in ("FP8_BLOCK", "W8A8", "W8A16", "W4A16"):  # for MXFP4, see the next test
        awkward[5:7] = 0.01
    source = write_checkpoint(
        tmp_path / "source", shape=shape, dtype=dtype, shards=2, edit={ROW: awkward}
    )
    assert_identical(source, tmp_path, target)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_mxfp4_keeps_the_largest_weights_where_the_peer_stores_zeros(dtype: str) -> None:
    largest = torch.full((1, 32), torch.finfo(DTYPES[dtype]).max, dtype=DTYPES[dtype])
    raw = largest.view(torch.int16).numpy().view(DTYPE_STORAGE[dtype])
    scheme = Mxfp4("MXFP4", dtype)
    encoded = scheme.encode(Block("w", dtype, 0, raw.reshape(1, -1)), None, None)
    stored = [part.reshape(-1).view(np.uint8) for part in encoded.parts]
    found = scheme.decode(stored, (1, 32))
    np.testing.assert_allclose(found, largest.float().numpy(), rtol=0.26)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_decoding_gives_what_compressed_tensors_decompresses(dtype: str, target: str) -> None:
    values = weights(Shape(), tied=False)[ROW].to(DTYPES[dtype])
    raw = values.view(torch.uint8).numpy().view(DTYPE_STORAGE[dtype])
    scheme = TARGETS[target].scheme(target, dtype, numerics="ct-eager")
    block = Block("w", dtype, 0, raw)
    state = scheme.reduce(None, block) if scheme.needs_reduce else None
    encoded = scheme.encode(block, state, None).parts
    stored = [np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in encoded]
    found = scheme.decode(stored, tuple(values.shape))
    exact = values.float().numpy()
    bits = TARGETS[target].weights["num_bits"]
    worst = np.abs(found - exact).max() / np.abs(exact).max()
    assert worst < {8: 0.04, 4: 0.2}[bits]
    error = float(((found - exact) ** 2).sum() / (exact**2).sum())
    assert 1e-6 < error < {8: 2e-3, 4: 4e-2}[bits]


@pytest.mark.parametrize("target", ["FP8_DYNAMIC", "FP8_BLOCK", "W8A8", "MXFP4"])
def test_profiles_differ_by_one_code_here_and_there(tmp_path: Path, target: str) -> None:
    source = write_checkpoint(tmp_path / "source", dtype="F16")
    codes = {}
    for profile in NUMERICS:
        quantize(str(source), tmp_path / profile, [target], name="m", numerics=profile)
        folder = tmp_path / profile / f"m-{target}"
        assert (
            json.loads((folder / "hermes-quant.json").read_text())["numerics"].count(profile) == 1
        )
        with safe_open(folder / "model.safetensors", "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        codes[profile] = torch.cat(
            [
                tensor.view(torch.uint8).flatten()
                for name, tensor in sorted(stored.items())
                if tensor.element_size() == 1 and "scale" not in name
            ]
        )
        scales = {
            t.dtype for name, t in stored.items() if "scale" in name and t.is_floating_point()
        }
        assert scales <= {torch.float32 if profile == "fp32-scales" else torch.float16}
    moved = (codes["ct-eager"] != codes["ct-sm90"]).float().mean().item()
    if target == "MXFP4":  # its scales are powers of two, so its quotients are exact
        assert moved == 0
    else:
        assert 0 < moved < 0.05
        assert (codes["ct-sm90"] != codes["fp32-scales"]).any()


def test_columns_that_do_not_divide_into_groups_are_refused(tmp_path: Path) -> None:
    shape = Shape(hidden=288, intermediate=544, heads=9, kv_heads=3)
    source = write_checkpoint(tmp_path / "source", shape=shape)
    with pytest.raises(UnsupportedError, match=r"proj\.weight: (288|544) columns.*W4A16 needs"):
        quantize(str(source), tmp_path / "out", ["W4A16"], name="m")
    quantize(str(source), tmp_path / "out", ["FP8_BLOCK"], name="m")  # the peer crashes here
    with safe_open(tmp_path / "out" / "m-FP8_BLOCK" / "model.safetensors", "pt") as file:
        codes, scales = file.get_tensor(ROW).float(), file.get_tensor(f"{ROW}_scale").float()
    assert scales.shape == (5, 3)
    spread = scales.repeat_interleave(128, 0)[:544].repeat_interleave(128, 1)[:, :288]
    exact = weights(shape, tied=False)[ROW].bfloat16().float()
    bound = torch.maximum(exact.abs() * (2**-4 + 2**-8), spread * 2**-10 * (1 + 2**-5))
    assert ((codes * spread - exact).abs() <= bound).all()


@pytest.mark.parametrize("target", TARGETS)
def test_a_nan_is_refused_and_nothing_is_left(tmp_path: Path, target: str) -> None:
    broken = weights(Shape(), tied=False)[ROW].bfloat16()
    broken[5, 7] = float("nan")
    source = write_checkpoint(tmp_path / "source", edit={ROW: broken})
    with pytest.raises(TensorError, match="nan at row 5, column 7"):
        quantize(str(source), tmp_path / "out", [target], name="m")
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("target", ["FP8_TENSOR", "FP8_BLOCK", "NVFP4A16", "W4A16"])
def test_bytes_do_not_depend_on_threads_or_blocks(tmp_path: Path, target: str) -> None:
    source = write_checkpoint(tmp_path / "source", shape=Shape(hidden=512, intermediate=1536))
    quantize(str(source), tmp_path / "a", [target], name="m")
    planner = planners(Options())[target]
    with open_model(str(source), "m") as model:
        plan = plan_run([planner(model, target)])
        run(
            plan,
            model.checkpoint,
            tmp_path / "b",
            source={},
            recipe={},
            tool="t",
            threads=3,
            memory_bytes=3 * WORKING_BYTES_PER_VALUE * 512 * 128,
        )
    for path in (tmp_path / "a" / f"m-{target}").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "b" / f"m-{target}" / path.name).read_bytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_awkward_rows(tmp_path: Path, dtype: str) -> None:
    shape = Shape(layers=1)
    weight = weights(shape, tied=False)[ROW].to(DTYPES[dtype])
    weight[:16] = awkward_rows(dtype, shape.hidden)
    source = write_checkpoint(tmp_path / "source", shape=shape, dtype=dtype, edit={ROW: weight})
    ours = assert_identical(source, tmp_path)
    with safe_open(ours / "model.safetensors", "pt") as file:
        codes, scales = file.get_tensor(ROW), file.get_tensor(ROW + "_scale")
    assert codes.dtype == torch.float8_e4m3fn
    assert scales.shape == (shape.intermediate, 1)
    assert scales.dtype == DTYPES[dtype]
    assert torch.isfinite(codes.float()).all()
    assert (scales > 0).all()


def test_mixed_16_bit_dtypes_keep_the_library_s_order(tmp_path: Path) -> None:
    norm = torch.ones(256, dtype=torch.float16)
    edit = {
        "model.norm.weight": norm,
        "model.layers.0.input_layernorm.weight": norm.float(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16),
        "model.layers.1.self_attn.q_proj.bias": torch.ones(256, dtype=torch.float16),
        "model.layers.1.mlp.down_proj.weight": torch.ones(256, 512, dtype=torch.float16),
    }
    assert_identical(write_checkpoint(tmp_path / "source", edit=edit), tmp_path)


def test_embedding_and_head_are_left_alone(tmp_path: Path, miniature: Path) -> None:
    quantize(str(miniature), tmp_path, ["FP8_DYNAMIC"], name="m")
    ours = tmp_path / "m-FP8_DYNAMIC"
    index = json.loads((ours / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {}
    for shard in sorted(set(index.values())):
        with safe_open(ours / shard, "pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert stored.keys() == index.keys()
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        assert torch.equal(stored[name], weights(Shape(), tied=False)[name].bfloat16())
        assert f"{name}_scale" not in stored
    eighth = [name for name, tensor in stored.items() if tensor.element_size() == 1]
    assert len(eighth) == 2 * 7
    config = json.loads((ours / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == ["lm_head", "model.embed_tokens"]


@pytest.mark.skipif(
    not (NANO / "model.safetensors").is_file(), reason="hermes-nano has no weights here"
)
def test_hermes_nano(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in NANO.iterdir():  # training code, prompts and recipe are not part of the model
        kept = path.suffix != ".py" and path.name != RECIPE_NAME and not path.name.startswith(".")
        if path.is_file() and kept:
            shutil.copyfile(path, source / path.name)
    assert_identical(source, tmp_path)


def torch_codes(values: np.ndarray) -> np.ndarray:
    clamped = torch.from_numpy(values.copy()).clamp(-448, 448)
    return clamped.to(torch.float8_e4m3fn).view(torch.uint8).numpy()


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_e4m3_codes_of_all_16_bit_patterns(dtype: str) -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    values = bits.view(DTYPES[dtype]).float().numpy()
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(encode_e4m3(values), torch_codes(values))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_e4m3_codes_of_random_32_bit_patterns(seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    bits[::2] = bits[::2] % np.uint32(0x0E000000) + np.uint32(0x38000000)  # where codes are dense
    bits[::4] |= np.uint32(1 << 31)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    np.testing.assert_array_equal(encode_e4m3(values), torch_codes(values))


def test_e4m3_values_of_all_codes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(decode_e4m3(codes), expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(encode_e4m3(expected[finite]), codes[finite])


@pytest.mark.parametrize("kind", DENSE)
def test_every_dense_family(tmp_path: Path, kind: str) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    source = write_family(tmp_path / kind, kind, vocabulary, vocab_size=320, shards=2)
    assert_identical(source, tmp_path, "FP8_DYNAMIC")
