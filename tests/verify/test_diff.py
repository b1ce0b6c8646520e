"""diff: other rounding is told from another model, and damage from both."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import load_file

from convert.errors import CheckpointError, InputError
from convert.tensor import TensorInfo
from quantize.job import quantize
from tests.command import invoke
from tests.miniature import write_checkpoint
from tests.verify.lint.checkpoints import INDEX, Tensors, change_json, change_tensors, linears
from tests.verify.lint.conftest import clean
from verify import diff as module
from verify.codes import code_bits, ordered
from verify.diff import Relation, diff
from verify.print_diff import print_diff

__all__ = ["clean"]
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("diff") / "source")


@pytest.fixture(scope="module")
def fp8(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp8")
    quantize(str(source), out, ["FP8_DYNAMIC"], name="m")
    return out / "m-FP8_DYNAMIC"


@pytest.fixture
def other(fp8: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(fp8, tmp_path / "other"))


def rounded_once(source: Path) -> Callable[[Tensors], None]:
    """The codes of GPUs from SM90 on: the float32 quotient is rounded to E4M3 at once."""
    weights = load_file(source / "model.safetensors")

    def edit(tensors: Tensors) -> None:
        for name in linears(tensors):
            quotient = weights[f"{name}.weight"].float() / tensors[f"{name}.weight_scale"].float()
            tensors[f"{name}.weight"] = quotient.clamp(-448, 448).to(torch.float8_e4m3fn)

    return edit


def test_a_copy_is_identical(fp8: Path, other: Path) -> None:
    report = diff(fp8, other)
    assert report.relation is Relation.IDENTICAL
    assert report.exit_code == 0
    assert report.worst == ()


def test_shards_do_not_matter(source: Path, tmp_path: Path) -> None:
    assert diff(source, write_checkpoint(tmp_path / "s", shards=3)).relation is Relation.IDENTICAL


def test_single_rounding_is_another_profile(source: Path, fp8: Path, other: Path) -> None:
    change_tensors(other, rounded_once(source))
    report = diff(fp8, other)
    assert report.relation is Relation.OTHER_NUMERICS, report.reason
    assert report.exit_code == 1
    codes = [tensor for tensor in report.tensors if tensor.kind.value == "codes"]
    share = sum(t.differing for t in codes) / sum(t.elements for t in codes)
    assert 0.02 < share < 0.04, share
    assert f"({100 * share:.2f} %) are one apart" in report.reason
    assert len(report.worst) == 10
    assert {tensor.max_distance for tensor in report.worst} == {1}


def test_every_difference_is_counted(fp8: Path, other: Path) -> None:
    change_tensors(other, lambda t: t.update({f"{Q}.weight": -t[f"{Q}.weight"].float()}))
    assert "F8_E4M3" in str(diff(fp8, other).worst[0].form)
    shutil.copy(fp8 / "model.safetensors", other)
    before = load_file(fp8 / "model.safetensors")[f"{Q}.weight"].view(torch.uint8)

    def raise_codes(tensors: Tensors) -> None:
        codes = tensors[f"{Q}.weight"].view(torch.uint8).clone()
        codes[:, :3] ^= 0x04  # a fraction bit: four codes up or down
        tensors[f"{Q}.weight"] = codes.view(torch.float8_e4m3fn)

    change_tensors(other, raise_codes)
    (worst,) = diff(fp8, other).worst
    assert (worst.name, worst.elements, worst.differing) == (f"{Q}.weight", before.numel(), 256 * 3)
    assert worst.max_distance == 4


def next_code(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"].view(torch.uint8).clone()
    codes[0, 0] = codes[0, 0] ^ 1
    tensors[f"{Q}.weight"] = codes.view(torch.float8_e4m3fn)


def next_scale(tensors: Tensors) -> None:
    tensors[f"{Q}.weight_scale"] = tensors[f"{Q}.weight_scale"] * 1.01


def turn_upside_down(tensors: Tensors) -> None:
    codes = tensors[f"{Q}.weight"].view(torch.uint8)
    tensors[f"{Q}.weight"] = codes.flip(0).view(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("change", "relation", "reason"),
    [
        (next_code, Relation.OTHER_NUMERICS, "1 codes"),
        (next_scale, Relation.OTHER_MODEL, "1 scales differ"),
        (lambda t: [next_code(t), next_scale(t)], Relation.OTHER_MODEL, "1 scales differ"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"] + 1}),
            Relation.OTHER_MODEL,
            "1 unquantized tensors differ",
        ),
        (lambda t: t.pop("lm_head.weight"), Relation.OTHER_MODEL, "1 tensors are in one of them"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()}),
            Relation.OTHER_MODEL,
            "1 tensors differ in dtype or shape",
        ),
        (
            turn_upside_down,
            Relation.OTHER_MODEL,
            "codes are up to",
        ),
    ],
)  # fmt: skip
def test_what_a_difference_means(
    fp8: Path, other: Path, change: Callable[[Tensors], None], relation: Relation, reason: str
) -> None:
    change_tensors(other, change)
    for a, b in ((fp8, other), (other, fp8)):
        report = diff(a, b)
        assert report.relation is relation, report.reason
        assert reason in report.reason


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.int64])
def test_small_differences_of_wide_numbers(
    fp8: Path, other: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    ones = torch.ones(256, dtype=dtype)
    changed = ones.clone()
    changed[7] = 1 + (1 if dtype is torch.int64 else torch.finfo(dtype).eps * 2)
    third = Path(shutil.copytree(fp8, tmp_path / "third"))
    change_tensors(other, lambda t: t.update({"model.norm.weight": ones}))
    change_tensors(third, lambda t: t.update({"model.norm.weight": changed}))
    (worst,) = diff(other, third).worst
    assert (worst.name, worst.differing) == ("model.norm.weight", 1)
    assert worst.max_distance == (2 if dtype in (torch.float32, torch.float16) else 1)


def test_the_sign_of_a_zero_is_a_difference_of_no_distance(fp8: Path, other: Path) -> None:
    zero = torch.zeros(256, 256).to(torch.float8_e4m3fn)
    for folder, value in ((fp8, zero), (other, (-zero.float()).to(torch.float8_e4m3fn))):
        copy = Path(shutil.copytree(fp8, other.parent / f"zero-{folder.name}"))
        change_tensors(copy, lambda t, value=value: t.update({f"{Q}.weight": value}))
    a, b = sorted(other.parent.glob("zero-*"))
    (worst,) = diff(a, b).worst
    assert (worst.differing, worst.max_distance) == (65536, 0)


def test_memory_is_bounded_by_small_runs(
    source: Path, fp8: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_tensors(other, rounded_once(source))
    whole = diff(fp8, other)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 700)
    assert diff(fp8, other) == whole


def test_other_layouts_and_broken_folders_are_refused(
    source: Path, fp8: Path, other: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"stored as unquantized.*float-quantized channel"):
        diff(source, fp8)
    content = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        diff(fp8, other)
    sharded = write_checkpoint(tmp_path / "sharded", shards=3)
    change_json(sharded / INDEX, lambda index: index["weight_map"].update(x="gone.safetensors"))
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: missing"):
        diff(source, sharded)


@pytest.mark.parametrize("scheme", ["W4A16", "NVFP4A16", "W8A8", "MXFP8"])
def test_codes_of_other_formats_are_told_apart(
    clean: Callable[[str], Path], tmp_path: Path, scheme: str
) -> None:
    folder = Path(shutil.copytree(clean(scheme), tmp_path / "other"))
    name = f"{Q}.weight_packed" if scheme in ("W4A16", "NVFP4A16") else f"{Q}.weight"

    def edit(tensors: Tensors) -> None:
        octets = tensors[name].contiguous().view(torch.uint8).clone()
        octets[5, 9] ^= 1
        tensors[name] = octets.view(tensors[name].dtype)

    change_tensors(folder, edit)
    report = diff(clean(scheme), folder)
    assert report.relation is Relation.OTHER_NUMERICS
    (worst,) = report.worst
    assert (worst.elements, worst.differing, worst.max_distance) == (256 * 256, 1, 1)


@given(st.integers(0, 255), st.integers(0, 255))
def test_distance_counts_the_values_between(a: int, b: int) -> None:
    info = TensorInfo("x.weight", "F8_E4M3", (2,), "f", 0)
    items = np.array([a, b], dtype=np.uint8)
    values = torch.from_numpy(items).view(torch.float8_e4m3fn).float().tolist()
    low, high = (int(code) for code in ordered(info, code_bits(info, items)))
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().tolist()
    finite = sorted({value for value in every if value == value})
    if all(value in finite for value in values):
        assert high - low == finite.index(values[1]) - finite.index(values[0])


def test_command_line(source: Path, fp8: Path, other: Path) -> None:
    same = invoke("diff", fp8, other)
    assert (same.exit_code, same.stderr) == (0, "")
    assert "identical" in same.stdout
    change_tensors(other, rounded_once(source))
    changed = invoke("diff", fp8, other)
    assert changed.exit_code == 1
    assert "other numerics profile" in changed.stdout
    data = json.loads(invoke("diff", fp8, other, "--json").stdout)
    assert (data["schema_version"], data["relation"]) == (1, "other numerics profile")
    assert data["tensors"][0]["elements"] > 0
    refused = invoke("diff", fp8, source)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error: ")


def test_what_is_only_in_one_is_printed(fp8: Path, other: Path) -> None:
    def rename(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]
        tensors["x[y]\x1b.weight"] = tensors.pop("model.norm.weight")

    change_tensors(other, rename)
    console = Console(width=100, file=io.StringIO())
    print_diff(diff(fp8, other), console)
    shown = console.file.getvalue()
    assert "only in other: x[y]\\x1b.weight" in shown
    assert "only in m-FP8_DYNAMIC: lm_head.weight" in shown
