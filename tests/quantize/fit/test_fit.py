"""The verb: exact sizes, the published figures, verdicts, limits, levers, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from convert.errors import InputError, UnsupportedError
from quantize.fit import for_llama_cpp, for_vllm, llama_cpp, vllm
from quantize.fit.answer import Answer, Question
from quantize.fit.candidate import Candidate
from quantize.fit.fit import Report, fit, parse_context, recommend
from quantize.fit.gpu import find_gpu, gpu_of_size, gpus
from quantize.fit.memory import DeviceMemory, Term, Verdict, judge
from quantize.fit.subject import Subject, read_subject
from quantize.fit.vllm_weights import check_parallel
from quantize.job import Options, planners, quantize
from tests.miniature import change_json
from tests.quantize.fit.shapes import candidate, subject, write_config

GB, GIB = 10**9, 1 << 30


def question(gpu: str, context: int = 8192, concurrency: int | None = None) -> Question:
    device, count, _ = find_gpu(gpu)
    return Question(device, count, context, concurrency)


def answer_of(name: str, target: str, gpu: str, **asked: int) -> Answer:
    """The answer for one target of a shape."""
    item = candidate(name, target)
    verb = for_llama_cpp.answer if item.engine == "llama.cpp" else for_vllm.answer
    return verb(item, subject(name, "FP8_DYNAMIC"), question(gpu, **asked))


def of(report: Report, target: str, engine: str = "llama.cpp") -> Answer:
    return next(a for a in report.answers if a.candidate.target == target and a.engine == engine)


# sizes


def test_every_size_is_the_plan_s_to_the_byte(tmp_path: Path, miniature: Path) -> None:
    found = {c.target: c for c in read_subject(str(miniature)).candidates if c.place is None}
    targets = [target for target, c in found.items() if not c.notes]
    job = quantize(str(miniature), tmp_path, targets, dry_run=True)
    assert {p.target: p.size_bytes for p in job.plan.artifacts} == {
        target: found[target].size_bytes for target in targets
    }
    assert set(found) == set(planners(Options()))
    assert all(c.exact for c in found.values())


def test_a_made_file_is_as_large_as_it_was_said_to_be(tmp_path: Path, miniature: Path) -> None:
    planned = {c.target: c for c in read_subject(str(miniature)).candidates}
    quantize(str(miniature), tmp_path, ["Q4_K_M", "FP8_DYNAMIC"])
    (path,) = tmp_path.glob("*.gguf")
    assert path.stat().st_size == planned["Q4_K_M"].size_bytes
    (made,) = read_subject(str(path)).candidates
    assert sorted((t.name, t.dtype, t.size_bytes) for t in made.tensors) == sorted(
        (t.name, t.dtype, t.size_bytes) for t in planned["Q4_K_M"].tensors
    )
    (folder,) = tmp_path.glob("*-FP8_DYNAMIC")
    (stored,) = read_subject(str(folder)).candidates
    shapes = [
        sorted((t.name, t.shape, t.size_bytes) for t in c.tensors)
        for c in (stored, planned["FP8_DYNAMIC"])
    ]
    assert shapes[0] == shapes[1]
    assert stored.target == "FP8_DYNAMIC"


def test_a_config_alone_gives_the_tensors_of_the_whole_checkpoint(
    tmp_path: Path, miniature: Path
) -> None:
    alone = tmp_path / "config.json"
    alone.write_bytes((miniature / "config.json").read_bytes())
    whole = {(c.target, c.container): c for c in read_subject(str(miniature)).candidates}
    for item in read_subject(str(alone)).candidates:
        assert item.weight_bytes == whole[item.target, item.container].weight_bytes
        assert not item.exact


@pytest.mark.parametrize(
    ("name", "target", "size_gb", "tolerance"),
    [
        ("405B", "source", 811.7, 0.001),
        ("405B", "FP8_DYNAMIC", 410.06, 0.001),
        ("Hermes 2 Pro 8B", "Q4_K_M", 4.92, 0.01),
        ("405B", "Q4_K_M", 243.06, 0.001),
    ],
)
def test_published_sizes(name: str, target: str, size_gb: float, tolerance: float) -> None:
    assert candidate(name, target).size_bytes == pytest.approx(size_gb * GB, rel=tolerance)


def test_405b_as_its_card_says() -> None:
    """Over 800 GB in 16 bits; in FP8 410 GB of weights, near 430 GB in all (32k tokens)."""
    assert candidate("405B", "source").size_bytes > 800 * GB
    made = replace(question("H100 SXM5 80GB", 32768), gpu=gpu_of_size(1 << 40, "x"))
    device = for_vllm.answer(candidate("405B", "FP8_DYNAMIC"), subject("405B", "Q8_0"), made)
    assert device.devices[0].value == pytest.approx(430 * GB, rel=0.02)


def test_405b_at_128k_keeps_64512_mib_of_kv() -> None:
    spec = subject("405B", "Q8_0").spec
    per_layer = llama_cpp.kv_bytes_per_layer(spec, 131072, "f16")
    assert per_layer is not None
    assert per_layer * 126 == 64512 << 20
    for_token = vllm.kv_bytes_per_token(spec, "auto")
    assert for_token is not None
    assert for_token * 131072 == 64512 << 20
    assert vllm.kv_bytes_per_token(spec, "auto", 8) == 64512


def test_theta_70b_on_two_a100_80gb() -> None:
    assert answer_of("Theta 70B", "source", "2xA100 SXM4 80GB").verdict is Verdict.FITS
    one = answer_of("Theta 70B", "source", "A100 SXM4 80GB")
    assert (one.verdict, one.breaks, one.fewest_gpus) == (Verdict.NO, "weights", 2)


# KV left for the cache, worked out independently of this code for 0.92 of the device
@pytest.mark.parametrize(
    ("name", "target", "gpu", "kv_gib"),
    [
        ("70B", "FP8_DYNAMIC", "H100 SXM5 80GB", 1.93),
        ("70B", "FP8_DYNAMIC", "H200 SXM 141GB", 57.70),
        ("405B", "FP8_DYNAMIC", "8xH100 SXM5 80GB", 19.87),
        ("405B", "FP8_DYNAMIC", "4xH200 SXM 141GB", 27.84),
        ("405B", "source", "8xH200 SXM 141GB", 28.84),
    ],
)
def test_golden_plans(name: str, target: str, gpu: str, kv_gib: float) -> None:
    device = answer_of(name, target, gpu).devices[0]
    assert vllm.free_pages(device, 1, safe=False) / GIB == pytest.approx(kv_gib, rel=0.05)


def test_70b_q4_k_m_on_two_24_gb_cards() -> None:
    plain = answer_of("70B", "Q4_K_M", "2xRTX 3090")
    assert plain.verdict is Verdict.FITS
    assert plain.largest_context == pytest.approx(16000, rel=0.15)


# verdicts


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


# splitting


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
    assert llama_cpp.devices_of_layers(3, 4, (1.0,)) == [0, 0, 0, 0]
    assert llama_cpp.devices_of_layers(3, 2, (1.0,)) == [None, None, 0, 0]
    assert llama_cpp.devices_of_layers(80, 81, (1, 1)).count(0) == 41
    assert llama_cpp.devices_of_layers(3, 0, (1.0,)) == [None] * 4


def test_a_tied_embedding_is_on_both_sides() -> None:
    spec, item = subject("3B", "Q8_0").spec, candidate("3B", "Q8_0")
    sections = llama_cpp.sections_of(item, spec)
    embedding = next(t.size_bytes for t in item.tensors if t.name == "token_embd.weight")
    whole = llama_cpp.place_weights(sections, 29, (1.0,))
    assert (whole.host, sum(whole.devices)) == (embedding, item.weight_bytes)
    none = llama_cpp.place_weights(sections, 0, (1.0,))
    assert (none.host, sum(none.devices)) == (item.weight_bytes, 0)


# limits and levers hold


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


# asking backwards


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


# bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "RTX 4099"}, "nearest names are RTX 4090"),
        ({"gpu": "H100"}, "could be any of: H100 PCIe 80GB, H100 SXM5 80GB, H100 NVL 94GB"),
        ({"gpu": "0xRTX 4090"}, "0 devices"),
        ({"gpu": ""}, "is not known"),
        ({"gpu": "RTX 4090", "context": "256k"}, "the model was made for 131,072 tokens"),
        ({"gpu": "RTX 4090", "context": "-5"}, "is not a number of tokens"),
        ({"gpu": "RTX 4090", "context": "many"}, "is not a number of tokens"),
        ({"gpu": "RTX 4090", "context": "0"}, "is not a number of tokens"),
        ({"gpu": "RTX 4090", "concurrency": 0}, "expected a number of requests"),
        ({"gpu": "RTX 4090", "concurrency": -3}, "expected a number of requests"),
        ({"gpu_memory": "24"}, "is not a size"),
        ({"gpu_memory": "-3GiB"}, "is not a size"),
        ({"gpu_memory": "1kB"}, "expected the memory of a device"),
        ({"max_memory": "lots"}, "is not a size"),
        ({"gpu": "RTX 4090", "engine": "ollama"}, "one of vllm, llama.cpp, both"),
        ({"gpu": "3xH100 SXM5 80GB", "engine": "vllm"}, "32 attention heads do not divide by 3"),
        ({"gpu": "RTX 4090", "targets": ["Q4_KM"]}, "unknown target 'Q4_KM'"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write_config(tmp_path, "8B")
    with pytest.raises(InputError, match=message):
        fit(str(path), **options)  # type: ignore[arg-type]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.bin").write_bytes(b"")
    for name, message in (
        ("empty", "holds no config.json"),
        ("x.json", "neither a config.json"),
        ("x.bin", "expected a checkpoint folder"),
    ):
        with pytest.raises(InputError, match=message):
            fit(str(tmp_path / name), gpu="RTX 4090")
    path = write_config(tmp_path / "q", "8B", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedError, match="describes a quantized model"):
        fit(str(path), gpu="RTX 4090")
    path = write_config(tmp_path / "u", "8B", architectures=["GemmaForCausalLM"])
    with pytest.raises(UnsupportedError, match="GemmaForCausalLM"):
        fit(str(path), gpu="RTX 4090")


def test_weights_of_an_unknown_architecture_are_still_counted(
    tmp_path: Path, miniature: Path
) -> None:
    for file in miniature.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_json(tmp_path / "config.json", architectures=["GemmaForCausalLM"])
    report = fit(str(tmp_path), gpu="RTX 4090", context="1k")
    (made,) = report.answers
    assert made.verdict is Verdict.UNKNOWN
    assert made.devices[0].term("weights").value


def test_a_part_of_a_split_file_stands_for_all(tmp_path: Path, miniature: Path) -> None:
    whole = quantize(str(miniature), tmp_path / "a", ["Q8_0"])
    quantize(str(miniature), tmp_path / "b", ["Q8_0"], max_file_bytes=400_000)
    (folder,) = (p for p in (tmp_path / "b").iterdir() if p.is_dir())
    parts = sorted(folder.glob("*.gguf"))
    assert len(parts) > 1
    (joined,) = read_subject(str(parts[-1])).candidates
    (single,) = read_subject(str(tmp_path / "a" / whole.plan.artifacts[0].name)).candidates
    assert joined.weight_bytes == single.weight_bytes
    assert joined.place == str(parts[0])
    parts[0].unlink()
    with pytest.raises(InputError, match="missing"):
        read_subject(str(parts[-1]))


def test_a_release_is_read_from_its_manifest(tmp_path: Path, miniature: Path) -> None:
    job = quantize(str(miniature), tmp_path, ["Q8_0", "Q4_K_M", "FP8_DYNAMIC"])
    names = [planned.name for planned in job.plan.artifacts]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"name": "R", "artifacts": [{"name": n} for n in names]}))
    for reference in (manifest, tmp_path):
        report = fit(str(reference), gpu="RTX 4090", context="1k")
        assert {a.candidate.target for a in report.answers} == {"Q8_0", "Q4_K", "FP8_DYNAMIC"}
        assert all(a.make is None for a in report.answers)
        assert str(tmp_path) in str(report.answers[0].command)
    manifest.write_text(json.dumps({"artifacts": [{"name": "../x.gguf"}]}))
    with pytest.raises(InputError, match="does not lie beside it"):
        fit(str(manifest), gpu="RTX 4090")
    manifest.write_text(json.dumps({"artifacts": []}))
    with pytest.raises(InputError, match="not a list of objects with a name"):
        fit(str(manifest), gpu="RTX 4090")


# devices


def test_every_device_states_what_is_usable_and_why() -> None:
    assert len(gpus()) == 101
    for gpu in gpus():
        assert 0 < gpu.usable_bytes <= gpu.memory_bytes, gpu.name
        assert gpu.usable_basis == "log" or gpu.usable_basis.startswith("estimate"), gpu.name
        assert gpu.source, gpu.name
        found, count, _ = find_gpu(f"2x{gpu.name}")
        assert (found.name, count) == (gpu.name, 2)
    logged = [gpu for gpu in gpus() if gpu.usable_basis == "log" and gpu.vendor == "nvidia"]
    assert len(logged) == 15
    assert min(gpu.usable_bytes / gpu.memory_bytes for gpu in logged) >= 0.98


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090", 1),
        ('2x"H100 SXM5 80GB"', "NVIDIA H100 SXM5 80GB", 2),
        ("rtx 4090 laptop", "NVIDIA GeForce RTX 4090 Laptop", 1),
        ("4090 24GB", "NVIDIA GeForce RTX 4090", 1),
        ("8 x H200 NVL", "NVIDIA H200 NVL 141GB", 8),
        ("3090", "NVIDIA GeForce RTX 3090", 1),
    ],
)
def test_names_as_people_write_them(text: str, name: str, count: int) -> None:
    found, many, remark = find_gpu(text)
    assert (found.name, many, remark) == (name, count, "")


def test_of_two_that_match_the_slower_is_planned_and_said() -> None:
    found, count, remark = find_gpu("2xH100 80GB")
    assert (found.name, count) == ("NVIDIA H100 PCIe 80GB", 2)
    assert "H100 SXM5 80GB" in remark


@pytest.mark.parametrize(("text", "tokens"), [("32k", 32768), ("8192", 8192), ("1M", 1 << 20)])
def test_contexts_as_people_write_them(text: str, tokens: int) -> None:
    assert parse_context(text) == tokens


def test_candidates_say_where_they_are(miniature: Path) -> None:
    found = read_subject(str(miniature), ["Q8_0"])
    source, made = found.candidates
    assert isinstance(source, Candidate)
    assert (source.place, made.place) == (str(miniature), None)
