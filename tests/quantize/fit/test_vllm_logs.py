"""Every vLLM row of memory_logs.csv: weights, activation, KV cache, tokens."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, replace
from importlib.resources import files

import pytest

from convert.tensor import TensorInfo
from quantize.fit import vllm
from quantize.fit.candidate import Candidate, from_safetensors
from quantize.fit.gpu import MIB, Gpu, gpu_of_size
from quantize.fit.memory import DeviceMemory, Verdict, judge
from quantize.fit.vllm_version import PLANNED_VERSION, version_of
from quantize.fit.vllm_weights import weights_per_rank
from tests.quantize.fit.shapes import candidate, subject

ROWS = [
    row
    for row in csv.DictReader(
        (files("quantize.fit") / "memory_logs.csv").read_text(encoding="utf-8").splitlines()
    )
    if row["engine"] == "vllm"
]
H100, A100_40, RTX_3090, PRO_6000 = 81090.6, 40448.0, 24145.9, 94.97 * 1024
"""MiB of the whole device, as CUDA gave it to torch."""


@dataclass(frozen=True)
class Run:
    """One start: the shape, how it is stored, the version, and the settings that are recorded.

    `unknown` says what a log leaves out of the inputs of the KV cache, `outside_mib` what it states
    of the memory outside torch, where that is an input and not a prediction.
    """

    shape: str
    stored: str
    version: str
    total_mib: float = H100
    utilization: float = 0.95
    sequences: int = 1024
    tokens: int = 8192
    kv_type: str = "auto"
    ranks: int = 1
    stages: int = 1
    eager: bool = True
    unknown: str = ""
    dtype: str = "bfloat16"
    outside_mib: float | None = None


PR_205 = Run("8B", "source", "0.19")
Q14 = Run("14B", "source", "0.16")
PRO = Run("70B", "fp8 tensor", "0.23", PRO_6000, 0.9, eager=False)
V0 = Run("8B", "source", "0.6", RTX_3090, 0.9, sequences=1, tokens=20000, outside_mib=358.4)
FP8_70B = "RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic"
RUNS: dict[tuple[str, str, str, str], Run] = {
    ("Meta-Llama-3-8B-Instruct", "FP8 static", "8192", "TP1 (v0.4.2)"): Run(
        "Llama 3 8B", "fp8 tensor", "0.4", unknown="device and utilization"
    ),
    ("Meta-Llama-3-8B", "BF16", "8192", "TP1 util .90 (v0.6, V0)"): Run(
        "Llama 3 8B", "source", "0.6", A100_40, 0.9, unknown="max_num_seqs"
    ),
    (
        "Meta-Llama-3.1-405B-Instruct-FP8",
        "FP8 (Meta: attention + first/last layer BF16, 16 KV heads)",
        "131072 default",
        "TP8",
    ): Run("Meta 405B FP8", "Meta", "0.5", H100, 0.9, ranks=8, unknown="did not start"),
    ("Llama-3.1-8B-Instruct", "BF16", "20000", "TP1 util .90 no chunked prefill (V0)"): V0,
    ("Llama-3.1-8B-Instruct", "BF16", "29000", "TP1 util .90 no chunked prefill (V0)"): replace(
        V0, tokens=29000
    ),
    ("Llama-3.1-8B-Instruct", "BF16", "131072", "TP1 (V1, May 2025)"): Run(
        "8B", "source", "0.9", unknown="device, utilization and batch"
    ),
    (
        "Meta-Llama-3.1-8B-Instruct",
        "BF16",
        "131072",
        "TP1 util .90 eager, LLM class (v0.15.1)",
    ): Run("8B", "source", "0.15", A100_40, 0.9, 256, 8192),
    ("Hermes-3-Llama-3.1-8B", "BF16", "not stated", "TP1 (V1)"): Run(
        "8B", "source", "0.9", RTX_3090, unknown="version, utilization and batch"
    ),
    (
        "nvidia/Llama-3.3-70B-Instruct-FP8",
        "FP8, KV fp8",
        "32000",
        "TP1 max_num_seqs 8, 8192 batched tokens",
    ): Run("70B", "fp8 tensor", "0.9", sequences=8, kv_type="fp8", unknown="utilization, version"),
    **{
        ("Llama-3.1-70B-Instruct", "FP8 (online)", "16384", f"TP1 util {text} (v0.23.0){more}"): (
            replace(PRO, utilization=float(text))
        )
        for text, more in ((".90", ""), (".875", ""), (".75", ": refuses to start"))
    },
    **{
        ("Llama-3.1-8B-Instruct", "BF16", "8192", f"{kind}{n} util .95 (v0.19.0)"): replace(
            PR_205, ranks=n if kind == "TP" else 1, stages=n if kind == "PP" else 1
        )
        for kind, n in (("TP", 1), ("TP", 2), ("TP", 4), ("PP", 2), ("PP", 4))
    },
    ("Llama-3.1-8B-Instruct", "BF16, KV fp8", "8192", "TP1 util .95 (v0.19.0)"): replace(
        PR_205, kv_type="fp8"
    ),
    ("Llama-3.1-8B-Instruct", "FP8 online", "8192", "TP1 util .95 (v0.19.0)"): replace(
        PR_205, stored="fp8 tensor"
    ),
    ("Llama-3.1-8B-Instruct", "FP32", "8192", "TP1 util .95 (v0.19.0)"): replace(
        PR_205, dtype="float32"
    ),
    (FP8_70B, "FP8 dynamic", "8192", "TP2 util .95 (v0.19.0); derived from printed % error"): Run(
        "70B", "FP8_DYNAMIC", "0.19", ranks=2
    ),
    **{
        (
            "Qwen3-14B (Hermes 4 14B architecture)",
            "BF16",
            "not stated",
            f"TP1 (v0.{minor}.0)",
        ): replace(Q14, version=f"0.{minor}")
        for minor in (16, 17, 18)
    },
}
INPUTS = {"cuda_total", "device_used", "cuda_graph"}
"""What the formulas are given, or (graphs before 0.21) do not subtract."""


def stored(run: Run) -> Candidate:
    """The folder a run served."""
    if run.stored in ("source", "FP8_DYNAMIC"):
        return candidate(run.shape, run.stored, run.dtype)
    source = candidate(run.shape, "source")
    infos: list[TensorInfo] = []
    layers = subject(run.shape, "FP8_DYNAMIC").spec.num_hidden_layers
    for tensor in source.tensors:
        quantized = tensor.layer is not None and len(tensor.shape) == 2
        if run.stored == "Meta":  # the MLPs only, and not those of the first and last layer
            quantized = ".mlp." in tensor.name and tensor.layer not in (0, layers - 1)
        dtype = "F8_E4M3" if quantized else "BF16"
        infos.append(TensorInfo(tensor.name, dtype, tensor.shape, "m", 0))
        if quantized:
            shape = (tensor.shape[0], 1) if run.stored == "Meta" else (1,)
            infos.append(TensorInfo(f"{tensor.name}_scale", "F32", shape, "m", 0))
    return from_safetensors("m", "FP8", infos, None, "m")


def device(run: Run) -> Gpu:
    return gpu_of_size(round(run.total_mib * MIB), "log")


def settings(run: Run, context: int = 16) -> vllm.Settings:
    return vllm.Settings(
        context=context,
        concurrency=1,
        sequences=run.sequences,
        batched_tokens=run.tokens,
        utilization=run.utilization,
        kv_type=run.kv_type,
        ranks=run.ranks,
        stages=run.stages,
        eager=run.eager,
    )


def planned(run: Run, context: int = 16) -> tuple[DeviceMemory, int]:
    """The terms of one rank, and the bytes of one KV page."""
    spec = subject(run.shape, "FP8_DYNAMIC", dtype=run.dtype).spec
    weights = weights_per_rank(stored(run), spec, run.ranks, run.stages)
    version = version_of(run.version)
    if run.outside_mib is not None:
        stated = round(run.outside_mib)
        version = replace(version, outside_mib=(stated, stated, stated))
    memory = vllm.memory(weights, spec, device(run), settings(run, context), version)
    per_token = vllm.kv_bytes_per_token(spec, run.kv_type, run.ranks)
    assert per_token is not None
    return memory, per_token * vllm.PAGE_TOKENS


def key(row: dict[str, str]) -> tuple[str, str, str, str]:
    return row["model"], row["quant"], row["context"], row["parallel"]


def check(row: dict[str, str]) -> str:
    """Hold one row to its bar; the bar's name, or why there is none."""
    run, item, value = RUNS[key(row)], row["item"], float(row["value_mib"])
    if item in INPUTS or (item == "non_torch" and run.outside_mib is not None):
        return "input"
    memory, page = planned(run)
    if item.startswith("weights"):
        assert memory.term(vllm.WEIGHTS).value == pytest.approx(value * MIB, rel=0.001)
        return "weights"
    if item == "non_torch":
        outside = memory.term(vllm.OUTSIDE)
        if run.stages > 1:
            return "pipeline stages: not planned"
        assert outside.low <= value * MIB <= outside.high + MIB
        return "non_torch"
    if item in ("activation_peak", "peak_torch"):
        if run.unknown == "max_num_seqs":
            return run.unknown
        weights = memory.term(vllm.WEIGHTS).value or 0
        activation = value * MIB - (weights if item == "peak_torch" else 0)
        assert memory.term(vllm.ACTIVATION).value == pytest.approx(activation, rel=0.05)
        return "activation"
    unit = {"kv_cache": MIB, "kv_blocks": page, "kv_tokens": page // vllm.PAGE_TOKENS}[item]
    if run.unknown:
        return run.unknown
    free = vllm.free_pages(memory, page, safe=False) * page
    assert free == pytest.approx(value * unit, rel=0.03)
    return "kv"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{'-'.join(key(row))}-{row['item']}")
def test_a_row_is_within_its_bar(row: dict[str, str]) -> None:
    check(row)


def test_what_the_bars_cover() -> None:
    assert len(ROWS) == 77
    held = Counter(check(row) for row in ROWS)
    assert held["weights"] == 20
    assert held["activation"] == 11
    assert held["kv"] == 21
    assert held["non_torch"] == 8


@pytest.mark.parametrize("item", ["kv_tokens", "kv_blocks"])
def test_tokens_follow_from_the_cache_that_a_log_states(item: str) -> None:
    """Where other inputs are missing, the log's own KV bytes still give its tokens or blocks."""
    stated = {(*key(row), row["item"]): float(row["value_mib"]) for row in ROWS}
    pairs = [(k, v) for k, v in stated.items() if k[4] == item and (*k[:4], "kv_cache") in stated]
    assert len(pairs) >= 3
    for k, count in pairs:
        _, page = planned(RUNS[k[:4]])
        unit = page if item == "kv_blocks" else page // vllm.PAGE_TOKENS
        assert count * unit == pytest.approx(stated[*k[:4], "kv_cache"] * MIB, rel=0.002)


FAILURES = {
    "70B FP8 at 16k on one H100 (llm-d-benchmark#621, v0.11)": (
        Run("70B", "FP8_DYNAMIC", "0.11", H100, 0.95),
        16384,
    ),
    "70B FP8 at 16k, utilization .75, RTX PRO 6000 (log 55680053478)": (
        replace(PRO, utilization=0.75),
        16384,
    ),
    "8B at 29,000 tokens on a 3090 (vllm#10517)": (replace(V0, tokens=29000), 29000),
    "405B FP8 on 8 x H100 at its default context (vllm#6746)": (
        Run("Meta 405B FP8", "Meta", "0.5", H100, 0.9, 256, 512, ranks=8),
        131072,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_failed_in_a_log_is_never_said_to_fit(name: str) -> None:
    run, context = FAILURES[name]
    memory, _ = planned(run, context)
    assert judge([memory]) == (Verdict.NO, vllm.KV)


@pytest.mark.parametrize("name", FAILURES)
def test_nor_by_today_s_coefficients(name: str) -> None:
    run, context = FAILURES[name]
    today = replace(run, version=PLANNED_VERSION, eager=False)
    assert judge([planned(today, context)[0]])[0] is not Verdict.FITS


def test_what_started_in_a_log_is_never_said_not_to_fit() -> None:
    started = 0
    for row in ROWS:
        run = RUNS[key(row)]
        if row["item"] != "kv_tokens" or run.unknown:
            continue
        memory, _ = planned(run, int(row["context"]))
        if float(row["value_mib"]) >= int(row["context"]):
            started += 1
            assert judge([memory])[0] is not Verdict.NO
    assert started >= 6
