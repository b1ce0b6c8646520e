"""Limits hold and are limits; levers are enough; memory can be asked for backwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from quantize.fit import for_llama_cpp, for_vllm
from quantize.fit.answer import Question
from quantize.fit.fit import fit
from quantize.fit.gpu import gpu_of_size
from quantize.fit.memory import Verdict
from quantize.fit.recommend import recommend
from tests.quantize.fit.asking import answer_of, of, question
from tests.quantize.fit.shapes import candidate, subject, write_config

GB, GIB = 10**9, 1 << 30


@pytest.mark.parametrize("target", ["FP8_DYNAMIC", "source", "Q8_0", "Q4_K_M"])
def test_a_limit_fits_and_one_more_does_not(target: str) -> None:
    found, asked = subject("8B", "Q8_0"), question("RTX 3090", 8192, 2)
    item = candidate("8B", target)
    verb = for_llama_cpp.answer if item.engine == "llama.cpp" else for_vllm.answer
    made = verb(item, found, asked)
    context, users = made.largest_context, made.largest_concurrency
    assert context
    assert users
    assert context < 131072
    assert verb(item, found, replace(asked, context=context)).verdict is Verdict.FITS
    longer = replace(asked, context=context + 256)
    assert verb(item, found, longer).verdict is not Verdict.FITS
    many = replace(asked, concurrency=users)
    if item.engine == "llama.cpp":
        assert verb(item, found, many).verdict is Verdict.FITS
        more = replace(asked, concurrency=users + 1)
        assert verb(item, found, more).verdict is not Verdict.FITS


def test_the_fewest_gpus_fit_and_fewer_do_not() -> None:
    for target in ("FP8_DYNAMIC", "Q8_0"):
        fewest = answer_of("405B", target, "H100 SXM5 80GB").fewest_gpus
        assert fewest
        assert answer_of("405B", target, f"{fewest}xH100 SXM5 80GB").verdict is Verdict.FITS
        fewer = fewest // 2 if target == "FP8_DYNAMIC" else fewest - 1
        made = answer_of("405B", target, f"{fewer}xH100 SXM5 80GB")
        assert made.verdict is not Verdict.FITS


def test_the_lever_of_llama_cpp_is_enough() -> None:
    made = answer_of("8B", "Q8_0", "RTX 3080 10GB", context=16384)
    assert made.verdict is not Verdict.FITS
    assert made.lever == "-ctk q8_0 -ctv q8_0"
    asked = replace(question("RTX 3080 10GB", 16384), kv_type="q8_0")
    again = for_llama_cpp.answer(candidate("8B", "Q8_0"), subject("8B", "Q8_0"), asked)
    assert again.verdict is Verdict.FITS


def test_when_nothing_fits_the_report_names_a_lever(tmp_path: Path) -> None:
    path = write_config(tmp_path, "405B")
    report = fit(str(path), gpu="RTX 4090", targets=["FP8_DYNAMIC", "Q4_K_M"])
    assert report.recommended is None
    assert "first lever" in report.why
    assert "-ngl" in report.why or "GPUs" in report.why


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("RTX 4090", "FP8_DYNAMIC"),
        ("A100 SXM4 80GB", "BF16"),
        ("A10", "BF16"),
        ("RTX A4000", "FP8_DYNAMIC"),
        ("P40", "Q8_0"),
        ("RTX 3070", "Q6_K"),
        ("M4 Max", "Q8_0"),
    ],
)
def test_the_recommendation_follows_its_rule(tmp_path: Path, gpu: str, expected: str) -> None:
    path = write_config(tmp_path, "8B")
    report = fit(str(path), gpu=gpu, context="4k")
    assert report.recommended is not None
    assert report.recommended.candidate.target == expected, report.why
    assert report.recommended.command is not None


def test_nothing_is_recommended_of_what_does_not_fit() -> None:
    assert recommend([answer_of("405B", "source", "RTX 4090")])[0] is None


@pytest.mark.parametrize("name", ["8B", "3B", "70B"])
@pytest.mark.parametrize("gpus_", [1, 2])
def test_the_size_target_is_where_fitting_ends(name: str, gpus_: int) -> None:
    """Every mixture below the budget fits, every one that fits is below it, give or take types."""
    found = subject(name)
    asked = Question(gpu_of_size(40 * GIB if name == "70B" else 7 * GIB, "x"), gpus_, 8192, None)
    files = [c for c in found.candidates if c.engine == "llama.cpp"]
    for item in files:
        fits = for_llama_cpp.answer(item, found, asked).verdict is Verdict.FITS
        assert fits == (item.size_bytes <= for_llama_cpp.fitting_file_bytes(item, found, asked))


def test_max_memory_names_the_largest_mixture_and_a_budget(tmp_path: Path) -> None:
    path = write_config(tmp_path, "8B")
    report = fit(str(path), max_memory="8GiB", engine="llama.cpp")
    target = report.size_target
    assert target is not None
    assert target.mixture is not None
    assert of(report, target.mixture).verdict is Verdict.FITS
    fitting = [a for a in report.answers if a.verdict is Verdict.FITS]
    assert max(a.candidate.size_bytes for a in fitting) == target.mixture_bytes
    assert target.fit_bytes < 8 << 30
    assert target.command.endswith(f"--fit-bytes {target.fit_bytes}B")


def test_max_memory_of_a_named_gpu_becomes_its_utilization(tmp_path: Path) -> None:
    path = write_config(tmp_path, "8B")
    report = fit(str(path), gpu="H100 SXM5 80GB", max_memory="30GiB", targets=["FP8_DYNAMIC"])
    made = of(report, "FP8_DYNAMIC", "vllm")
    assert dict(made.settings)["--gpu-memory-utilization"] == "0.37"
    assert made.devices[0].budget_bytes <= 30 << 30
    assert made.verdict is Verdict.FITS


def test_without_a_gpu_the_smallest_is_named(tmp_path: Path) -> None:
    path = write_config(tmp_path, "70B")
    report = fit(str(path), targets=["FP8_DYNAMIC", "Q4_K_M"])
    by_target = {row.candidate.target: row for row in report.survey}
    assert by_target["BF16"].gpu is not None
    assert by_target["BF16"].gpu.usable_bytes > 141 * GB
    row = by_target["Q4_K_M"]
    assert row.gpu is not None
    made = answer_of("70B", "Q4_K_M", f"{row.count}x{row.gpu.name}")
    assert made.verdict is Verdict.FITS


@pytest.mark.parametrize(
    ("name", "gpu", "context", "words"),
    [
        ("8B", "RTX 3070", "128k", "Q6_K.gguf with -c "),
        ("8B", "RTX 4090", "128k", "with --kv-cache-dtype fp8"),
        ("70B", "RTX 4090", "8k", "IQ2_S.gguf with -ctk q8_0 -ctv q8_0"),
        ("405B", "RTX PRO 6000 Blackwell Server", "8k", "IQ2_XXS.gguf with -ngl "),
        ("405B", "RTX 4090", "8k", "IQ1_S.gguf with 4 GPUs"),
    ],
)
def test_the_cheapest_lever_of_the_best_artifact(
    tmp_path: Path, name: str, gpu: str, context: str, words: str
) -> None:
    path = write_config(tmp_path, name)
    answers = fit(str(path), gpu=gpu, context=context).answers
    lacking = [answer for answer in answers if answer.verdict is not Verdict.FITS]
    recommended, why = recommend(lacking)
    assert recommended is None
    assert words in why
