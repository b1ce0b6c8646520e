"""vLLM's memory on one rank, in the order in which it takes it.

    budget = ceil(usable x utilization), of which weights, what lies outside torch (CUDA context,
    NCCL), the activation peak of its profiling run and, since 0.21, an estimate for CUDA graphs are
    taken; the KV cache gets the rest.

The activation peak is the larger of two runs: the sampler over S sequences of the whole vocabulary,
which does not shrink with tensor parallelism, and one forward pass over T tokens:

    max(b x S x V + 2 T H,  2 T (f x I / ranks + h x H))        bytes

b, f, h, the memory outside torch and the defaults are rows of `vllm_versions.csv`, keyed by
version, each with its source; they were measured on CUDA only, so other vendors, and mixtures of
experts, get *not modelled*. Derivation and checks: `docs/fit.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from convert.model_spec import ModelSpec
from quantize.fit.gpu import MIB, Gpu
from quantize.fit.memory import DeviceMemory, Term
from quantize.fit.vllm_version import Version
from quantize.fit.vllm_weights import dtype_bytes, padded_vocabulary

GIB = 1 << 30
PAGE_TOKENS = 16
KV_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0}
KV, WEIGHTS, ACTIVATION, GRAPHS, OUTSIDE = (
    "KV cache",
    "weights",
    "activation peak",
    "CUDA graphs",
    "outside torch",
)
_GRAPH_GIB = (0.51, 1.02, 1.85)
_GRAPHS_MEASURED = 51


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line of vLLM decides; `context` tokens for each of `concurrency` requests.

    `sequences` is --max-num-seqs, `batched_tokens` --max-num-batched-tokens.
    """

    context: int
    concurrency: int
    sequences: int
    batched_tokens: int
    utilization: float
    kv_type: str = "auto"
    ranks: int = 1
    stages: int = 1
    eager: bool = False


def default_batch(gpu: Gpu) -> tuple[int, int]:
    """vLLM's own --max-num-seqs and --max-num-batched-tokens on this device, as a server."""
    gib = gpu.memory_bytes / GIB  # of the device, whatever may be used of it
    small = "A100" in gpu.name or "GB10" in gpu.name
    if gib >= 160:
        return 1024, 16384
    return (1024, 8192) if gib >= 70 and not small else (256, 2048)


def kv_bytes_per_token(spec: ModelSpec, kv_type: str, ranks: int = 1) -> int | None:
    """Bytes of KV cache that one rank keeps for one token; None for a type with no formula."""
    kind = "float32" if kv_type == "auto" and dtype_bytes(spec) == 4 else kv_type
    width = KV_BYTES.get("bfloat16" if kind == "auto" else kind)
    if width is None:
        return None
    heads = max(1, spec.num_key_value_heads // ranks)
    return round(spec.num_hidden_layers * heads * 2 * spec.head_dim * width)


def pages(tokens: int) -> int:
    """KV pages that a sequence of this length takes."""
    return -(-tokens // PAGE_TOKENS)


def activation_bytes(spec: ModelSpec, settings: Settings, version: Version) -> int:
    """The peak of the profiling run, beyond the weights.

    A pipeline stage runs no sampler unless it is the last, which has its own figure in no log, and
    keeps the hidden state and the residual that travel between stages.
    """
    tokens, hidden = settings.batched_tokens, spec.hidden_size
    width = dtype_bytes(spec)
    per_token = version.forward_intermediate * spec.intermediate_size / settings.ranks
    forward = width * tokens * (per_token + version.forward_hidden * hidden)
    if settings.stages > 1:
        return round(forward + 2 * width * tokens * hidden)
    logits = version.sampler_bytes * settings.sequences * padded_vocabulary(spec)
    return round(max(logits + width * tokens * hidden, forward))


def graph_count(sequences: int) -> int:
    """How many batch sizes vLLM captures: 1, 2, 4, then steps of 8, from 256 on steps of 16."""
    largest = min(2 * sequences, 512)
    small = sum(size <= largest for size in (1, 2, 4))
    return (
        small + min(largest, 248) // 8 + max(0, (largest - 256) // 16 + 1 if largest >= 256 else 0)
    )


def memory(
    weight_bytes: int,
    spec: ModelSpec,
    gpu: Gpu,
    settings: Settings,
    version: Version,
    unmodelled: str | None = None,
) -> DeviceMemory:
    """The terms of one rank, which keeps `weight_bytes` of weights.

    `unmodelled` says why this model's attention has no formula, if it has none.
    """
    source = "headers and rotary table; within 0.03 % of the logs"
    terms = [
        Term.within(WEIGHTS, weight_bytes, 0.001, source, "high"),
        _outside(gpu, settings, version),
        Term.unknown(ACTIVATION, unmodelled)
        if unmodelled
        else _activation(spec, gpu, settings, version),
    ]
    if version.counts_graphs and not settings.eager:
        terms.append(_graphs(settings))
    terms.append(Term.unknown(KV, unmodelled) if unmodelled else kv_cache(spec, settings))
    budget = math.ceil(gpu.usable_bytes * settings.utilization)
    return DeviceMemory(budget, tuple(terms))


def kv_cache(spec: ModelSpec, settings: Settings) -> Term:
    """What the requests need, in whole pages."""
    per_token = kv_bytes_per_token(spec, settings.kv_type, settings.ranks)
    if per_token is None:
        return Term.unknown(KV, f"no formula for the cache type {settings.kv_type!r}")
    count = settings.concurrency * pages(settings.context)
    source = f"{count:,} pages of 16 tokens, {per_token:,} bytes a token"
    return Term.exact(KV, count * PAGE_TOKENS * per_token, source)


def _outside(gpu: Gpu, settings: Settings, version: Version) -> Term:
    if gpu.vendor not in ("nvidia", ""):
        return Term.unknown(OUTSIDE, f"no log of vLLM on {gpu.vendor} devices")
    low, middle, high = version.parallel_mib if settings.ranks > 1 else version.outside_mib
    return Term(OUTSIDE, middle * MIB, low * MIB, high * MIB, version.source, version.confidence)


def _activation(spec: ModelSpec, gpu: Gpu, settings: Settings, version: Version) -> Term:
    if spec.num_experts:
        return Term.unknown(ACTIVATION, "no formula for the buffers of a mixture of experts")
    if gpu.vendor not in ("nvidia", ""):
        return Term.unknown(ACTIVATION, f"no log of vLLM on {gpu.vendor} devices")
    value = activation_bytes(spec, settings, version)
    band = version.activation_band
    return Term.within(ACTIVATION, value, band, version.source, version.confidence)


def _graphs(settings: Settings) -> Term:
    share = graph_count(settings.sequences) / _GRAPHS_MEASURED
    low, middle, high = (round(gib * GIB * share) for gib in _GRAPH_GIB)
    source = (
        f"{graph_count(settings.sequences)} graphs; for 51, 0.51 to 1.85 GiB in logs, 1.02 on v0.23"
    )
    return Term(GRAPHS, middle, low, high, source, "low")


def free_pages(device: DeviceMemory, page_bytes: int, *, safe: bool) -> int:
    """Pages that fit beside everything else; `safe` takes the upper end of every band."""
    others = [term for term in device.terms if term.name != KV]
    used = sum(term.high if safe else (term.value or 0) for term in others)
    return max(0, (device.budget_bytes - used) // page_bytes)


def with_levers(
    settings: Settings, concurrency: int, *, fp8_kv: bool, whole: bool
) -> list[tuple[str, Settings]]:
    """Single changes that save memory, in the order in which to try them.

    `fp8_kv` says whether the device can, `whole` whether all of its memory may be used.
    """
    sequences = max(concurrency, 64)
    levers = []
    if fp8_kv and settings.kv_type == "auto":
        levers.append(("--kv-cache-dtype fp8", replace(settings, kv_type="fp8")))
    if sequences < settings.sequences:
        changed = replace(settings, sequences=sequences)
        levers.append((f"--max-num-seqs {sequences}", changed))
    if settings.batched_tokens > 2048:
        changed = replace(settings, batched_tokens=2048)
        levers.append(("--max-num-batched-tokens 2048", changed))
    if whole and settings.utilization < 0.95:
        levers.append(("--gpu-memory-utilization 0.95", replace(settings, utilization=0.95)))
    return levers
