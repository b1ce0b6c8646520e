"""Start-up logs in the engines' words, with the figures of memory_logs.csv, against predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.errors import InputError
from quantize.fit.compare import Compared, compare
from tests.command import invoke
from tests.quantize.fit.shapes import write_config

VLLM_V1 = """\
INFO [core.py:54] Initializing a V1 LLM engine (v0.19.0) with config: model='m', \
max_seq_len=8192, tensor_parallel_size=1, pipeline_parallel_size=1, enforce_eager=False, \
kv_cache_dtype=auto, seed=0
INFO [utils.py:253] non-default args: {'model': 'm', 'gpu_memory_utilization': 0.95}
INFO [gpu_model_runner.py:848] Model loading took 14.99 GiB memory and 3.2 seconds
INFO [gpu_worker.py:298] Available KV cache memory: 58.11 GiB
INFO [kv_cache_utils.py:1229] GPU KV cache size: 476,000 tokens
INFO [kv_cache_utils.py:1234] Maximum concurrency for 8,192 tokens per request: 58.11x
INFO [gpu_model_runner.py:4199] Graph capturing finished in 20 secs, took 0.84 GiB
"""
VLLM_V0 = """\
INFO 11-21 Initializing an LLM engine (v0.6.3) with config: model='m', max_seq_len=20000, \
tensor_parallel_size=1, enforce_eager=False, kv_cache_dtype=auto, max_num_seqs=1, \
max_num_batched_tokens=20000
INFO 11-21 model_runner.py:1067] Loading model weights took 14.9888 GB
INFO 11-21 worker.py:232] Memory profiling results: total_gpu_memory (23.58GiB) x \
gpu_memory_utilization (0.90) = 21.22GiB
INFO 11-21 worker.py:232] model weights take 14.99GiB; non_torch_memory takes 0.35GiB; PyTorch \
activation peak memory takes 2.07GiB; the rest of the memory reserved for KV Cache is 3.81GiB.
INFO 11-21 gpu_executor.py:122] # GPU blocks: 1952, # CPU blocks: 2048
"""
LLAMA_2024 = """\
llm_load_tensors: offloaded 33/33 layers to GPU
llm_load_tensors:        CPU buffer size =   281.81 MiB
llm_load_tensors:      CUDA0 buffer size =  4403.49 MiB
llama_new_context_with_model: n_ctx      = 512
llama_new_context_with_model: n_ubatch   = 512
llama_new_context_with_model: flash_attn = 0
llama_kv_cache_init:      CUDA0 KV buffer size =    64.00 MiB
llama_new_context_with_model: KV self size  =   64.00 MiB, K (f16):   32.00 MiB, V (f16): 32.00 MiB
llama_new_context_with_model:  CUDA_Host  output buffer size =     0.49 MiB
llama_new_context_with_model:      CUDA0 compute buffer size =   258.50 MiB
llama_new_context_with_model:  CUDA_Host compute buffer size =     9.01 MiB
"""
LLAMA_SPLIT = """\
0.00.1 I load_tensors: offloaded 81/81 layers to GPU
0.00.1 I load_tensors: RPC[10.0.0.1:50052] model buffer size = 18821.56 MiB
0.00.1 I load_tensors: RPC[10.0.0.2:50052] model buffer size = 18725.42 MiB
0.00.1 I load_tensors:   CPU_Mapped model buffer size =   563.62 MiB
0.00.2 I llama_context: n_seq_max     = 1
0.00.2 I llama_context: n_ctx         = 4096
0.00.2 I llama_context: n_ubatch      = 512
0.00.2 I llama_context: flash_attn    = 0
0.00.2 I llama_kv_cache: RPC[10.0.0.1:50052] KV buffer size =   656.00 MiB
0.00.2 I llama_kv_cache: RPC[10.0.0.2:50052] KV buffer size =   624.00 MiB
0.00.2 I llama_kv_cache: size = 1280.00 MiB, K (f16): 640.00 MiB, V (f16): 640.00 MiB
0.00.3 I llama_context: RPC[10.0.0.1:50052] compute buffer size = 588.01 MiB
0.00.3 I llama_context: RPC[10.0.0.2:50052] compute buffer size = 588.01 MiB
"""


def log(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "start.log"
    path.write_text(text)
    return path


def by_name(terms: tuple[Compared, ...]) -> dict[str, Compared]:
    return {term.name: term for term in terms}


def test_vllm_v1_with_the_gpu_named(tmp_path: Path) -> None:
    model = write_config(tmp_path, "8B")
    found = compare(str(model), log(tmp_path, VLLM_V1), gpu="H100 SXM5 80GB")
    terms = by_name(found.terms)
    assert found.candidate.target == "BF16"
    for name, bar in (("weights", 0.001), ("KV cache", 0.03), ("KV tokens", 0.03)):
        assert terms[name].error == pytest.approx(0, abs=bar)
    assert terms["CUDA graphs"].predicted is None  # not subtracted before 0.21


def test_vllm_v1_without_the_gpu_predicts_what_it_can(tmp_path: Path) -> None:
    found = compare(str(write_config(tmp_path, "8B")), log(tmp_path, VLLM_V1))
    terms = by_name(found.terms)
    assert terms["weights"].predicted is not None
    assert (terms["KV cache"].predicted, terms["KV tokens"].predicted) == (None, None)
    assert "--gpu" in terms["KV cache"].why


def test_vllm_v0_states_its_device(tmp_path: Path) -> None:
    found = compare(str(write_config(tmp_path, "8B")), log(tmp_path, VLLM_V0))
    terms = by_name(found.terms)
    assert terms["activation peak"].error == pytest.approx(0, abs=0.05)
    assert terms["weights"].error == pytest.approx(0, abs=0.001)
    assert terms["outside torch"].error == pytest.approx(-0.63, abs=0.01)  # said, not hidden
    assert terms["KV blocks"].measured == 1952


def test_llama_cpp_of_2024(tmp_path: Path) -> None:
    found = compare(str(write_config(tmp_path, "8B")), log(tmp_path, LLAMA_2024))
    assert found.candidate.target == "Q4_K_M"
    assert len(found.terms) == 6
    for term in found.terms:
        assert term.predicted is not None
        assert abs(term.predicted - term.measured) < 20_000


def test_llama_cpp_over_two_devices(tmp_path: Path) -> None:
    found = compare(str(write_config(tmp_path, "70B")), log(tmp_path, LLAMA_SPLIT))
    assert found.candidate.target == "Q4_0"
    assert len(found.terms) == 7
    for term in found.terms:
        assert term.predicted is not None
        assert abs(term.predicted - term.measured) < 5 << 20, term


def test_the_artifact_nearest_to_the_log_is_meant(tmp_path: Path) -> None:
    text = VLLM_V1.replace("14.99 GiB", "8.49 GiB")
    found = compare(str(write_config(tmp_path, "8B")), log(tmp_path, text))
    assert found.candidate.target == "FP8_DYNAMIC"


@pytest.mark.parametrize(
    ("text", "message"), [("hello", "no memory of vLLM or llama.cpp"), (None, "cannot be read")]
)
def test_what_is_no_log(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.log" if text is None else log(tmp_path, text)
    with pytest.raises(InputError, match=message):
        compare(str(write_config(tmp_path, "8B")), path)


def test_a_log_of_an_engine_the_model_has_nothing_for(tmp_path: Path, miniature: Path) -> None:
    from quantize.job import quantize

    quantize(str(miniature), tmp_path, ["Q8_0"])
    (file,) = tmp_path.glob("*.gguf")
    with pytest.raises(InputError, match="nothing here is for vllm"):
        compare(str(file), log(tmp_path, VLLM_V1))


def test_the_command_shows_predicted_and_real(tmp_path: Path) -> None:
    model, path = write_config(tmp_path, "8B"), log(tmp_path, LLAMA_2024)
    done = invoke("fit", model, "--compare", path)
    assert done.exit_code == 0
    assert "4,403.49 MiB" in done.stdout
    data = json.loads(invoke("fit", model, "--compare", path, "--json").stdout)
    assert (data["schema_version"], data["target"]) == (1, "Q4_K_M")
    assert all(abs(term["error"]) < 0.002 for term in data["terms"])
