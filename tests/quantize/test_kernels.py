"""Our kernels: every build makes ggml's bytes and numpy's FP8, whatever the rows hold."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.errors import InputError
from convert.gguf import GGML_TYPES
from convert.tensor import SOURCE_DTYPES, Array, Block, round_to, to_float32
from quantize import kernels, scaled
from quantize.codes import FORMATS
from quantize.ggml import Ggml, kernel_build, quantize_chunk
from tests.hard_rows import KINDS, hard_importance, hard_rows, stored_as

if not kernels.BUILDS:
    pytest.skip("the extension was not built on this machine", allow_module_level=True)

TYPES = (
    *("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS"),
)
every_build = pytest.mark.parametrize("build", kernels.BUILDS)


def test_the_types_are_those_promised_and_their_blocks_are_ggml_s() -> None:
    from quantize.kernels.native import SIZES

    assert set(kernels.TYPES) == set(TYPES)
    for name, (values, block_bytes) in zip(kernels.TYPES, SIZES, strict=True):
        kind = GGML_TYPES[name]
        assert (values, block_bytes) == (kind.block, kind.block_bytes), name


@every_build
@pytest.mark.parametrize("name", TYPES)
def test_bytes_are_ggml_s_for_every_kind_of_row(build: str, name: str) -> None:
    random = np.random.default_rng(TYPES.index(name))
    for trial in range(6):
        columns = GGML_TYPES[name].block * int(random.integers(1, 7))
        columns = max(columns, 32)
        values = np.stack([kind(random, columns, 0.02) for kind in KINDS.values()])
        values = np.clip(values, -3e38, 3e38).astype(np.float32)
        importance = hard_importance(random, columns)
        for dtype in SOURCE_DTYPES:
            raw, wide = stored_as(values, dtype)
            for weights in (None, importance):
                ours = kernels.quantize(build, raw, dtype, name, weights)
                theirs = quantize_chunk(name, wide, weights)
                different = np.flatnonzero((ours != theirs).any(axis=1))
                assert not len(different), (trial, dtype, weights is None, different)


@every_build
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 17])
def test_no_row_is_lost_where_lanes_are_left_over(build: str, name: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    values, importance = hard_rows(random, rows, 768), hard_importance(random, 768)
    for weights in (None, importance):
        ours = kernels.quantize(build, values, "F32", name, weights)
        np.testing.assert_array_equal(ours, quantize_chunk(name, values, weights))


@every_build
@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
@pytest.mark.parametrize("columns", [1, 7, 16, 333])
@pytest.mark.parametrize("code", scaled.KERNEL_CODES)
def test_codes_are_what_numpy_makes(build: str, dtype: str, columns: int, code: str) -> None:
    rows = [kind(np.random.default_rng(3), 336, 0.02)[:columns] for kind in KINDS.values()]
    largest = 60000 if dtype == "F16" else 3e38
    values = np.clip(np.stack(rows), -largest, largest).astype(np.float32)
    block = Block("w", dtype, 0, stored_as(values, dtype)[0])
    absmax = scaled.absmax_by_numpy(block)
    np.testing.assert_array_equal(kernels.measure_absmax(build, block), absmax)
    scales = scaled.scales_of(absmax, FORMATS[code].half_range, dtype)
    wide = to_float32(scales, dtype)
    for rounded in {dtype, "F32"}:
        ours = kernels.encode_codes(build, block, wide, code, rounded)
        with np.errstate(over="ignore"):
            theirs = scaled.codes_by_numpy(block, wide, code, rounded)
        np.testing.assert_array_equal(ours, theirs)


@every_build
@pytest.mark.parametrize("code", scaled.KERNEL_CODES)
def test_every_16_bit_quotient_is_rounded_as_numpy_does(build: str, code: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype, storage in (("BF16", np.uint16), ("F16", np.float16)):
        raw = bits.view(storage)
        finite = raw[np.isfinite(to_float32(raw, dtype))]
        raw = np.stack([finite, finite])
        scales = round_to(np.array([[1.0], [1.5]], dtype=np.float32), dtype)
        block, wide = Block("w", dtype, 0, raw), to_float32(scales, dtype)
        ours = kernels.encode_codes(build, block, wide, code, dtype)
        np.testing.assert_array_equal(ours, scaled.codes_by_numpy(block, wide, code, dtype))


def test_threads_do_not_disturb_each_other() -> None:
    values = hard_rows(np.random.default_rng(1), 64, 1024)
    alone = quantize_chunk("Q4_K", values, None)
    build = kernels.BUILDS[0]

    def part(first: int) -> np.ndarray:
        return kernels.quantize(build, values[first : first + 4], "F32", "Q4_K", None)

    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(np.concatenate([*pool.map(part, range(0, 64, 4))]), alone)


def test_buffers_of_the_wrong_size_are_refused_before_anything_is_written() -> None:
    from quantize.kernels import native

    rows, out = np.zeros((2, 256), np.float32), np.full((2, 144), 7, np.uint8)
    build = kernels.BUILDS[-1]
    for arguments, message in (
        ((build, "F32", rows, 256, "Q4_K", None, out[:1]), "blocks: 144 bytes, expected 288"),
        ((build, "F32", rows, 256, "Q4_K", np.zeros(255, np.float32), out), "importance: 1020"),
        ((build, "F32", rows, 128, "Q4_K", None, out), "128 columns are no blocks of 256"),
        ((build, "F32", rows, 300, "Q4_K", None, out), "2048 bytes are no rows of 300"),
        ((build, "F32", rows, 1 << 62, "Q4_K", None, out), "2048 bytes are no rows of 46116860"),
        ((build, "F64", rows, 256, "Q4_K", None, out), "dtype F64"),
        ((build, "F32", rows, 256, "IQ1_S", None, out), "no kernel for IQ1_S"),
        (("mmx", "F32", rows, 256, "Q4_K", None, out), "no kernels named mmx"),
    ):
        with pytest.raises(ValueError, match=message):
            native.quantize(*arguments)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", SOURCE_DTYPES)
def test_a_kernel_that_reads_one_dtype_wrong_is_not_used_for_it(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    honest = kernels.quantize

    def wrong(build: str, raw: Array, given: str, *others: Any) -> np.ndarray:
        out = honest(build, raw, given, *others)
        out[-1, -1] ^= given == dtype
        return out

    monkeypatch.setattr(kernels, "quantize", wrong)
    raw, wide = stored_as(hard_rows(np.random.default_rng(2), 3, 256) * np.float32(1e-9), dtype)
    kernel_build.cache_clear()
    try:
        with pytest.warns(UserWarning, match=rf"Q6_K from {dtype} differs from the installed libg"):
            (made,) = Ggml("Q6_K").encode(Block("w", dtype, 0, raw), None, None).parts
        others = [kernel_build("Q6_K", other) for other in SOURCE_DTYPES if other != dtype]
        assert others == [kernels.BUILDS[0]] * 2
    finally:
        kernel_build.cache_clear()
    np.testing.assert_array_equal(made, quantize_chunk("Q6_K", wide, None))


def test_a_kernel_that_differs_from_numpy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = kernels.encode_codes

    def wrong(*arguments: object) -> np.ndarray:
        out = honest(*arguments)  # type: ignore[arg-type]
        if arguments[3] == "INT4":
            out[0, 0] ^= 1
        return out

    monkeypatch.setattr(kernels, "encode_codes", wrong)
    block = Block("w", "F32", 0, hard_rows(np.random.default_rng(2), 3, 256))
    scaled.kernel_build.cache_clear()
    try:
        with pytest.warns(UserWarning, match="FP8 and integers differ from numpy"):
            made = scaled.encode_codes(block, np.ones((3, 1), np.float32), "INT4", "F32")
    finally:
        scaled.kernel_build.cache_clear()
    expected = scaled.codes_by_numpy(block, np.ones((3, 1), np.float32), "INT4", "F32")
    np.testing.assert_array_equal(made, expected)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    where = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where)


@pytest.mark.parametrize("choice", [*kernels.BUILDS, "ggml", ""])
def test_the_variable_chooses_the_build(choice: str) -> None:
    code = "from quantize.ggml import kernel_build, kernels; " + (
        "print(kernels.build(), kernel_build('Q4_K', 'F16'))"
    )
    done = run_python(code, **{kernels.VARIABLE: choice})
    expected = {"ggml": "None", "": kernels.BUILDS[0]}.get(choice, choice)
    assert done.stdout.split() == [expected, expected]


def test_a_build_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "neon")
    with pytest.raises(InputError, match=r"HERMES_QUANT_KERNELS=neon: this machine has .*ggml"):
        kernels.build.__wrapped__()


def test_without_the_extension_the_tool_says_so_once_and_makes_the_same_bytes(
    tmp_path: Path, miniature: Path
) -> None:
    code = (
        "import sys; sys.modules['quantize.kernels.native'] = None\n"
        "from hermes_quant import main; sys.argv[0] = 'hermes-quant'; main()"
    )
    made = {}
    for name, program in (("without", code), ("with", code.split("\n")[1])):
        arguments = ["quantize", str(miniature), "--out", str(tmp_path / name)]
        arguments += ["--to", "Q4_K_M", "--to", "FP8_DYNAMIC"]
        done = run_python(f"import sys; sys.argv[1:] = {arguments!r}\n{program}")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("kernels were not built") == (name == "without")
        files = [p for p in sorted((tmp_path / name).rglob("*")) if p.is_file()]
        made[name] = [p.read_bytes() for p in files if p.suffix in (".gguf", ".safetensors")]
    assert made["with"] == made["without"] != []
