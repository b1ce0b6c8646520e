"""Every quantized GGUF equals, whole file, what llama.cpp makes from our 16- or 32-bit GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from convert.errors import TensorError
from convert.gguf_reader import read_gguf
from convert.model import open_model
from convert.output_tensor import Importance, OutputTensor
from convert.plan import PlannedArtifact, plan_run
from convert.run import run
from quantize.job import Options, plan_mixture, quantize
from quantize.mixture_table import MIXTURES
from tests.miniature import Shape, change_json, write_checkpoint
from tests.peers import FILE_TYPES, NEED_IMATRIX, llama_fallbacks, llama_quantize

NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"
TARGETS = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]


def assert_identical(
    source: Path, dtype: str, tmp_path: Path, targets: Sequence[str] = TARGETS
) -> dict[str, str]:
    """Quantize both ways and compare whole files; llama.cpp's log by target."""
    out = tmp_path / "out"
    job = quantize(str(source), out, [dtype, *targets], name="m")
    logs = {}
    for planned in job.plan.artifacts:
        if planned.target in targets:
            theirs = tmp_path / f"llama-{planned.target}.gguf"
            code, log = llama_quantize(out / f"m-{dtype}.gguf", theirs, planned.target)
            assert code == 0, log
            assert (out / planned.name).read_bytes() == theirs.read_bytes(), planned.target
            assert sum(fallen(planned)) == llama_fallbacks(log)
            logs[planned.target] = log
    assert len(logs) == len(targets)
    return logs


def fallen(planned: PlannedArtifact) -> list[int]:
    """The counts in a planned artifact's warnings."""
    return [int(warning.split()[0]) for warning in planned.warnings]


@pytest.mark.parametrize(
    ("dtype", "tied", "shards"),
    [
        ("BF16", False, 1),
        ("BF16", True, 3),
        ("F16", False, 2),
        ("F16", True, 1),
        ("F32", False, 1),
        ("F32", True, 2),
    ],
)
def test_source_dtypes_tied_and_sharded(
    tmp_path: Path, dtype: str, tied: bool, shards: int
) -> None:
    source = write_checkpoint(tmp_path / "source", dtype=dtype, tied=tied, shards=shards)
    assert_identical(source, dtype, tmp_path)


def test_every_published_type(tmp_path: Path) -> None:
    """Those that need an imatrix are in test_importance.py."""
    source = write_checkpoint(tmp_path / "source", shape=Shape(intermediate=256, layers=9))
    assert_identical(source, "BF16", tmp_path, [t for t in FILE_TYPES if t not in NEED_IMATRIX])


def test_enough_layers_that_the_better_types_alternate(tmp_path: Path) -> None:
    shape = Shape(intermediate=256, layers=17, heads=4, kv_heads=1)
    source = write_checkpoint(tmp_path / "source", shape=shape)
    assert_identical(source, "BF16", tmp_path)
    tensors = read_gguf(tmp_path / "out" / "m-Q4_K_M.gguf").tensors
    down = [tensors[f"blk.{i}.ffn_down.weight"].ggml_type for i in range(17)]
    assert {"Q4_K", "Q6_K"} == set(down)
    assert down[2:8] != sorted(down[2:8])  # they alternate, so a wrong counter would show


def test_without_rope_scaling_there_are_no_rope_factors(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", scaled=False)
    assert_identical(source, "BF16", tmp_path)
    assert "rope_freqs.weight" not in read_gguf(tmp_path / "out" / "m-Q8_0.gguf").tensors


def test_biases_and_a_head_size_of_its_own(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    sizes = {"q": 512, "k": 256, "v": 256}  # 8 heads and 4 of 64 values, where 32 are usual
    edit = {"model.layers.0.self_attn.o_proj.weight": torch.randn(256, 512, generator=generator)}
    for projection, rows in sizes.items():
        name = f"model.layers.0.self_attn.{projection}_proj"
        edit[f"{name}.weight"] = torch.randn(rows, 256, generator=generator)
        edit[f"{name}.bias"] = torch.randn(rows, generator=generator)
    edit = {name: tensor.bfloat16() for name, tensor in edit.items()}
    source = write_checkpoint(tmp_path / "source", shape=Shape(layers=1), edit=edit)
    change_json(source / "config.json", head_dim=64)
    assert_identical(source, "BF16", tmp_path)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(intermediate=288),  # down_proj alone
        Shape(hidden=320, heads=10, kv_heads=5, intermediate=512),  # all but down_proj
    ],
)
def test_rows_of_32_but_not_256_fall_back_as_in_llama_cpp(tmp_path: Path, shape: Shape) -> None:
    source = write_checkpoint(tmp_path / "source", shape=shape)
    logs = assert_identical(source, "BF16", tmp_path)
    assert llama_fallbacks(logs["Q4_K_M"]) > 0
    assert llama_fallbacks(logs["Q8_0"]) == 0


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_rows_that_divide_by_nothing_become_f16(tmp_path: Path, dtype: str) -> None:
    shape = Shape(hidden=80, heads=4, kv_heads=2, intermediate=100)
    source = write_checkpoint(tmp_path / "source", shape=shape, dtype=dtype)
    logs = assert_identical(source, dtype, tmp_path)
    assert all(llama_fallbacks(log) == 2 * 7 + 2 for log in logs.values())


@pytest.mark.parametrize(
    ("shape", "value"),
    [
        (Shape(), 1e10),  # the block's scale is a float16
        (Shape(hidden=80, heads=4, kv_heads=2, intermediate=100), 70000.0),  # falls back to F16
    ],
)
def test_what_llama_cpp_refuses_is_refused(tmp_path: Path, shape: Shape, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = torch.full((shape.intermediate, shape.hidden), 0.01, dtype=torch.bfloat16)
    weight[3, 5] = value
    source = write_checkpoint(tmp_path / "source", shape=shape, edit={name: weight})
    quantize(str(source), tmp_path / "out", ["BF16"], name="m")
    for target in TARGETS:
        code, _ = llama_quantize(tmp_path / "out" / "m-BF16.gguf", tmp_path / "theirs", target)
        assert code != 0
        with pytest.raises(TensorError, match=name):
            quantize(str(source), tmp_path / "out", [target], name="m")
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["m-BF16.gguf"]


@pytest.mark.parametrize("target", ["Q6_K", "Q4_K_M"])
def test_importance_reaches_the_quantizer(tmp_path: Path, miniature: Path, target: str) -> None:
    rng = np.random.default_rng(1)
    quantize(str(miniature), tmp_path, ["BF16"], name="m")
    with open_model(str(miniature), "m") as opened:
        planned = plan_mixture(opened, target, Options())
        matrices = [p.tensor for p in planned.files[0].tensors if len(p.tensor.shape) > 1]
        imatrix = {
            tensor.name: rng.gamma(0.5, size=tensor.shape[-1]).astype(np.float32)
            for tensor in matrices
            if tensor.name.startswith("blk.")
        }

        def weighted(tensor: OutputTensor) -> OutputTensor:
            values = imatrix.get(tensor.name)
            if values is None:
                return tensor
            return replace(
                tensor, importance=Importance(values.tobytes().hex(), values.reshape(1, -1))
            )

        (file,) = planned.files
        placed = tuple(replace(p, tensor=weighted(p.tensor)) for p in file.tensors)
        plain = planned
        planned = replace(planned, files=(replace(file, tensors=placed),))
        assert planned.fingerprint(opened.checkpoint, "t") != plain.fingerprint(
            opened.checkpoint, "t"
        )
        run(plan_run([planned]), opened.checkpoint, tmp_path, source={}, recipe={}, tool="t")
    theirs = tmp_path / "theirs.gguf"
    code, log = llama_quantize(tmp_path / "m-BF16.gguf", theirs, target, imatrix=imatrix)
    assert code == 0, log
    assert (tmp_path / planned.name).read_bytes() == theirs.read_bytes()
    llama_quantize(tmp_path / "m-BF16.gguf", theirs, target)
    assert (tmp_path / planned.name).read_bytes() != theirs.read_bytes()


@pytest.mark.skipif(
    not (NANO / "model.safetensors").is_file(), reason="hermes-nano has no weights here"
)
def test_hermes_nano(tmp_path: Path) -> None:
    assert_identical(NANO, "BF16", tmp_path)


def test_every_mixture_is_compared() -> None:
    assert {name: mixture.file_type for name, mixture in MIXTURES.items()} == FILE_TYPES
