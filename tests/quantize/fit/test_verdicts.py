"""What fits, what cannot be said, what the hardware decides, and how models are split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from quantize.fit import for_llama_cpp, for_vllm, llama_cpp_weights, vllm
from quantize.fit.candidate import Subject
from quantize.fit.fit import fit
from quantize.fit.gpu import find_gpu
from quantize.fit.memory import DeviceMemory, Term, Verdict, judge
from quantize.fit.subject import read_subject
from quantize.fit.vllm_weights import check_parallel
from quantize.job import quantize
from tests.quantize.fit.asking import answer_of, question
from tests.quantize.fit.shapes import candidate, subject, write_config


def test_the_verdict_is_drawn_from_the_bands() -> None:
    weights = Term.exact("weights", 80, "")
    kv = Term("KV cache", 15, 10, 25, "", "low")
    for budget, expected in (
        (105, (Verdict.FITS, None)),
        (104, (Verdict.TIGHT, "KV cache")),
        (90, (Verdict.TIGHT, "KV cache")),
        (89, (Verdict.NO, "KV cache")),
        (79, (Verdict.NO, "weights")),
    ):
        assert judge([DeviceMemory(budget, (weights, kv))]) == expected


def test_a_missing_term_allows_no_yes() -> None:
    unknown = DeviceMemory(1 << 50, (Term.exact("weights", 1, ""), Term.unknown("KV cache", "")))
    assert judge([unknown]) == (Verdict.UNKNOWN, "KV cache")
    small = DeviceMemory(1, (Term.exact("weights", 2, ""), Term.unknown("KV cache", "")))
    assert judge([unknown, small]) == (Verdict.NO, "weights")


def test_experts_have_no_activation_formula_on_vllm_and_a_checked_one_on_llama_cpp() -> None:
    name = "Mixtral 8x7B"
    on_vllm = answer_of(name, "source", "2xH100 SXM5 80GB")
    assert (on_vllm.verdict, on_vllm.breaks) == (Verdict.UNKNOWN, "activation peak")
    assert (on_vllm.largest_context, on_vllm.speed) == (None, None)
    on_llama = answer_of(name, "Q4_K_M", "RTX 5090")
    assert on_llama.verdict is Verdict.FITS
    assert on_llama.speed is None


def unmodelled(tmp_path: Path, **changes: object) -> Subject:
    path = write_config(tmp_path, "8B", **changes)
    return read_subject(str(path), ["FP8_DYNAMIC", "Q4_K_M"])


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "sliding_attention"] * 16},
        {"layer_types": ["linear_attention"] * 32},
    ],
)
def test_hybrid_attention_is_not_modelled(tmp_path: Path, changes: dict[str, object]) -> None:
    found = unmodelled(tmp_path, **changes)
    for item in found.candidates:
        verb = for_llama_cpp.answer if item.engine == "llama.cpp" else for_vllm.answer
        made = verb(item, found, question("H200 SXM 141GB"))
        assert made.verdict is Verdict.UNKNOWN
        assert made.largest_context is None


def test_a_window_shorter_than_the_context_is_not_modelled_on_vllm(tmp_path: Path) -> None:
    found = unmodelled(tmp_path, sliding_window=4096)
    item = found.candidates[0]
    assert for_vllm.answer(item, found, question("H200 SXM", 8192)).verdict is Verdict.UNKNOWN
    assert for_vllm.answer(item, found, question("H200 SXM", 4096)).verdict is Verdict.FITS
    off = unmodelled(tmp_path, sliding_window=4096, use_sliding_window=False)
    assert for_vllm.answer(item, off, question("H200 SXM", 8192)).verdict is Verdict.FITS


@pytest.mark.parametrize("target", ["source", "Q4_K_M"])
def test_an_unknown_cache_type_is_not_modelled(target: str) -> None:
    asked = replace(question("H200 SXM"), kv_type="turbo3")
    item = candidate("8B", target)
    verb = for_llama_cpp.answer if item.engine == "llama.cpp" else for_vllm.answer
    made = verb(item, subject("8B", "Q8_0"), asked)
    assert (made.verdict, made.breaks) == (Verdict.UNKNOWN, "KV cache")


def test_the_cache_scheme_of_a_folder_is_taken_from_it(tmp_path: Path, miniature: Path) -> None:
    quantize(str(miniature), tmp_path, ["FP8_DYNAMIC"])
    (folder,) = tmp_path.glob("*-FP8_DYNAMIC")
    config = json.loads((folder / "config.json").read_text())
    for scheme, kind in (
        ({"type": "float", "num_bits": 8}, "fp8"),
        ({"type": "int", "num_bits": 4}, '{"num_bits": 4, "type": "int"}'),
    ):
        config["quantization_config"]["kv_cache_scheme"] = scheme
        (folder / "config.json").write_text(json.dumps(config))
        assert read_subject(str(folder)).kv_scheme == kind


@pytest.mark.parametrize(
    ("gpu", "target", "verdict", "arithmetic"),
    [
        ("H100 SXM5 80GB", "FP8_DYNAMIC", Verdict.FITS, "W8A8"),
        ("RTX 4090", "FP8_DYNAMIC", Verdict.FITS, "W8A8"),
        ("RTX 3090", "FP8_DYNAMIC", Verdict.FITS, "weight-only (no faster arithmetic)"),
        ("T4", "FP8_DYNAMIC", Verdict.FITS, "weight-only (no faster arithmetic)"),
        ("V100 SXM2 32GB", "FP8_DYNAMIC", Verdict.CANNOT, "weight-only (no faster arithmetic)"),
        ("V100 SXM2 32GB", "source", Verdict.FITS, ""),
        ("P40", "source", Verdict.CANNOT, ""),
        ("P40", "Q4_K_M", Verdict.FITS, ""),
        ("M3 Max", "source", Verdict.CANNOT, ""),
        ("MI300X", "source", Verdict.UNKNOWN, ""),
    ],
)
def test_the_compute_capability_decides(
    gpu: str, target: str, verdict: Verdict, arithmetic: str
) -> None:
    made = answer_of("8B", target, gpu, context=4096)
    assert made.verdict is verdict
    assert target == "Q4_K_M" or verdict is Verdict.CANNOT or made.arithmetic == arithmetic


def test_fp8_caches_are_offered_where_the_gpu_has_fp8_only() -> None:
    ada = answer_of("8B", "FP8_DYNAMIC", "RTX 4090", context=131072)
    ampere = answer_of("8B", "FP8_DYNAMIC", "RTX 3090", context=131072)
    assert ada.verdict is not Verdict.FITS
    assert ada.lever == "--kv-cache-dtype fp8"
    assert ampere.lever is not None
    assert "fp8" not in ampere.lever


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16])
def test_kv_heads_are_replicated_beyond_their_number(ranks: int) -> None:
    spec = subject("70B", "Q8_0").spec
    each = vllm.kv_bytes_per_token(spec, "auto", ranks)
    assert each == 80 * max(1, 8 // ranks) * 2 * 128 * 2


def test_ranks_that_do_not_divide_are_refused() -> None:
    found, item = subject("14B", "FP8_DYNAMIC"), candidate("14B", "FP8_DYNAMIC")
    allowed = [n for n in range(1, 17) if check_parallel(found.spec, item, n) is None]
    assert allowed == [1, 2, 4, 8]
    assert "40 attention heads do not divide by 3" in str(check_parallel(found.spec, item, 3))
    even = replace(found.spec, vocab_size=160000, intermediate_size=17920)
    assert "neither divided among" in str(check_parallel(even, item, 5))
    made = answer_of("14B", "FP8_DYNAMIC", "3xH100 SXM5 80GB")
    assert (made.verdict, made.fewest_gpus) == (Verdict.CANNOT, 1)


def test_blocks_must_not_straddle_ranks() -> None:
    """17,408 = 136 blocks of 128: two ranks get 68 each, sixteen would get eight and a half."""
    found = subject("14B", "FP8_DYNAMIC")
    tensors = []
    for tensor in candidate("14B", "FP8_DYNAMIC").tensors:
        if tensor.name.endswith("weight_scale"):
            rows = tensor.shape[0] // 128
            columns = {"down_proj": 136, "o_proj": 32}.get(tensor.name.split(".")[-2], 40)
            tensor = replace(tensor, shape=(rows, columns))
        tensors.append(tensor)
    item = replace(candidate("14B", "FP8_DYNAMIC"), tensors=tuple(tensors))
    spec = replace(found.spec, num_attention_heads=32)
    assert check_parallel(spec, item, 2) is None
    assert "blocks of 128" in str(check_parallel(spec, item, 16))


def test_layers_go_to_devices_as_llama_cpp_places_them() -> None:
    assert llama_cpp_weights.devices_of_layers(3, 4, (1.0,)) == [0, 0, 0, 0]
    assert llama_cpp_weights.devices_of_layers(3, 2, (1.0,)) == [None, None, 0, 0]
    assert llama_cpp_weights.devices_of_layers(80, 81, (1, 1)).count(0) == 41
    assert llama_cpp_weights.devices_of_layers(3, 0, (1.0,)) == [None] * 4


def test_a_tied_embedding_is_on_both_sides() -> None:
    spec, item = subject("3B", "Q8_0").spec, candidate("3B", "Q8_0")
    sections = llama_cpp_weights.sections_of(item, spec)
    embedding = next(t.size_bytes for t in item.tensors if t.name == "token_embd.weight")
    whole = llama_cpp_weights.place_weights(sections, 29, (1.0,))
    assert (whole.host, sum(whole.devices)) == (embedding, item.weight_bytes)
    none = llama_cpp_weights.place_weights(sections, 0, (1.0,))
    assert (none.host, sum(none.devices)) == (item.weight_bytes, 0)


def test_an_fp8_cache_needs_a_gpu_with_fp8() -> None:
    asked = replace(question("RTX 3090"), kv_type="fp8")
    made = for_vllm.answer(candidate("8B", "FP8_DYNAMIC"), subject("8B", "Q8_0"), asked)
    assert (made.verdict, made.breaks) == (
        Verdict.CANNOT,
        "compute capability 8.6; an FP8 cache needs 8.9",
    )


@pytest.mark.parametrize("gpu", ["TPU v5e", "Gaudi 3", "Trainium2"])
def test_llama_cpp_has_no_backend_there(gpu: str) -> None:
    assert answer_of("8B", "Q4_K_M", gpu, context=4096).verdict is Verdict.CANNOT


def test_llama_cpp_holds_256_sequences_at_most() -> None:
    made = answer_of("8B", "Q4_K_M", "H200 NVL", context=256, concurrency=257)
    assert made.verdict is Verdict.CANNOT
    assert "256 sequences" in str(made.breaks)


def test_the_batch_follows_the_device_and_not_what_may_be_used_of_it() -> None:
    whole = find_gpu("H100 SXM5 80GB")[0]
    part = replace(whole, usable_bytes=60 << 30)
    assert vllm.default_batch(part) == vllm.default_batch(whole) == (1024, 8192)
    assert vllm.default_batch(find_gpu("A100 SXM4 80GB")[0]) == (256, 2048)
    assert vllm.default_batch(find_gpu("B200")[0]) == (1024, 16384)


def test_a_survey_does_not_call_a_sliding_window_fitting(tmp_path: Path) -> None:
    path = write_config(tmp_path, "8B", sliding_window=4096)
    report = fit(str(path), context="32k", targets=["FP8_DYNAMIC", "Q4_K_M"])
    by_target = {row.candidate.target: row.gpu for row in report.survey}
    assert by_target["BF16"] is None
    assert by_target["FP8_DYNAMIC"] is None
    assert by_target["Q4_K_M"] is not None


def test_float32_is_planned_and_asked_for_as_such(tmp_path: Path) -> None:
    path = write_config(tmp_path, "8B", torch_dtype="float32")
    report = fit(str(path), gpu="H100 SXM5 80GB", engine="vllm", targets=["FP8_DYNAMIC"])
    assert all("--dtype float32" in str(answer.command) for answer in report.answers)
