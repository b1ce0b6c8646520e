"""llama.cpp's memory on each device: weights (`llama_cpp_weights.py`), KV cells, compute buffers.

KV cache. cells x (K width + V width) x bytes of the cache type, in every layer; `-c` is the sum
over all slots, and each slot's share is rounded up to 256 cells.

Compute. llama.cpp reserves the largest graph once: with u = micro-batch, n = cells of a slot,
H hidden, Q = heads x head_dim, D = KV heads x head_dim, I = intermediate (of the experts used),

    logits      4u (V + H)                       only if every token of the batch is an output
    stage       4u (3I + 2H + Q) + 2u n          flash attention
    stage       4u (max(heads n + 2H + 2Q, 3I + 2H) + n + 2D)   without; builds of 2024: no 2D

The server asks for one output a slot, which removes the logits. On several devices four copies of
the inputs are kept (`docs/fit.md` has their terms). Closed forms against llama.cpp's own reserve:
tests/quantize/fit. Sizes in bytes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from convert.model_spec import ModelSpec
from quantize.fit.gpu import MIB
from quantize.fit.llama_cpp_weights import Weights, devices_of_layers
from quantize.fit.memory import DeviceMemory, Term

CELL_ALIGNMENT = 256
KV_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
KV, WEIGHTS, COMPUTE, OVERHEAD = "KV cache", "weights", "compute buffer", "engine overhead"


@dataclass(frozen=True, slots=True)
class Build:
    """A row of llama_cpp_builds.csv: what its graphs hold, and what lies outside its buffers."""

    since: str
    kv_projections: int
    host_inputs: int
    overhead_mib: tuple[int, int, int]
    overhead_source: str
    source: str
    decode_efficiency: float
    decode_source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line of llama-server decides.

    `context` tokens for each of `slots`; `layers` counts offloaded layers, the head among them;
    `split` holds one share a device; `outputs` None means that every token of a batch is one.
    """

    context: int
    slots: int
    layers: int
    split: tuple[float, ...] = (1.0,)
    kv_type: str = "f16"
    flash_attention: bool = True
    micro_batch: int = 512
    outputs: int | None = 1
    copies: int = 4

    @property
    def tokens(self) -> int:
        """Tokens of the largest graph: the micro-batch, or all cells where these are fewer."""
        return min(self.micro_batch, cells(self.context) * self.slots)


@cache
def builds() -> tuple[Build, ...]:
    """Every row of llama_cpp_builds.csv, oldest first."""
    text = (files("quantize.fit") / "llama_cpp_builds.csv").read_text(encoding="utf-8")
    return tuple(
        Build(
            since=row["since"],
            kv_projections=int(row["kv_projections"]),
            host_inputs=int(row["host_inputs"]),
            overhead_mib=(
                int(row["overhead_low_mib"]),
                int(row["overhead_mib"]),
                int(row["overhead_high_mib"]),
            ),
            overhead_source=row["overhead_source"],
            source=row["source"],
            decode_efficiency=float(row["decode_efficiency"]),
            decode_source=row["decode_source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def cells(context: int) -> int:
    """KV cells of one slot: the context, rounded up."""
    return -(-context // CELL_ALIGNMENT) * CELL_ALIGNMENT


def kv_bytes_per_layer(spec: ModelSpec, total_cells: int, kv_type: str) -> int | None:
    """KV bytes of one layer; None for a cache type with no formula."""
    if kv_type not in KV_BYTES:
        return None
    width = 2 * spec.num_key_value_heads * spec.head_dim
    return round(total_cells * width * KV_BYTES[kv_type])


def stage_bytes(spec: ModelSpec, settings: Settings, build: Build) -> int:
    """The largest moment inside one layer."""
    u, n = settings.tokens, cells(settings.context)
    hidden, queries = spec.hidden_size, spec.num_attention_heads * spec.head_dim
    gated = 3 * max(spec.num_experts_per_tok, 1) * spec.intermediate_size
    if settings.flash_attention:
        return 4 * u * (gated + 2 * hidden + queries) + 2 * u * n
    keys = build.kv_projections * spec.num_key_value_heads * spec.head_dim
    attention = spec.num_attention_heads * n + 2 * hidden + 2 * queries
    return 4 * u * (max(attention, gated + 2 * hidden) + n + keys)


def compute_bytes(spec: ModelSpec, settings: Settings, build: Build) -> list[int]:
    """The compute buffer of each device; all layers offloaded."""
    u, hidden, n = settings.tokens, spec.hidden_size, cells(settings.context)
    stage = stage_bytes(spec, settings, build)
    outputs = u if settings.outputs is None else min(u, settings.outputs)
    logits = 4 * outputs * (spec.vocab_size + hidden)
    count = len(settings.split)
    if count == 1 or settings.copies == 1:
        return [max(stage, logits if i == count - 1 else 0) for i in range(count)]
    if settings.flash_attention:
        stage -= 2 * u * n  # the mask is among the copied inputs
        return [
            max(stage, logits if i == count - 1 else 0)
            + (16 if i == 0 else 32) * u * hidden
            + 8 * u * n
            for i in range(count)
        ]
    width = spec.num_key_value_heads * spec.head_dim
    scores = 4 * u * spec.num_attention_heads * n + 16 * u * n
    keys = 16 * build.kv_projections * u * width
    return [scores + (32 if i == 0 else 48) * u * hidden + keys for i in range(count)]


def host_compute_bytes(spec: ModelSpec, settings: Settings, build: Build) -> int:
    """The compute buffer in main memory: the inputs of the graph."""
    u, n, hidden = settings.tokens, cells(settings.context), spec.hidden_size
    if len(settings.split) > 1 and settings.copies > 1:
        return 20 * u * hidden + 8 * u * n
    inputs = 4 * build.host_inputs * u * hidden
    if settings.flash_attention:
        return inputs + 2 * u * n
    keys = 4 * build.kv_projections * u * spec.num_key_value_heads * spec.head_dim
    return inputs + 4 * u * n + keys


def cpu_compute_bytes(spec: ModelSpec, settings: Settings, build: Build) -> int:
    """The one compute buffer of a run without any device: a device's, and the embedded tokens."""
    inputs = 4 * settings.tokens * spec.hidden_size if build.kv_projections else 0
    return max(compute_bytes(spec, settings, build)) + inputs


def output_bytes(spec: ModelSpec, settings: Settings) -> int:
    """The buffer of the logits that are handed out, in main memory."""
    return 4 * spec.vocab_size * settings.slots


def memory(
    weights: Weights,
    spec: ModelSpec,
    settings: Settings,
    build: Build,
    usable_bytes: int,
    unmodelled: str | None = None,
) -> tuple[tuple[DeviceMemory, ...], tuple[Term, ...]]:
    """What each device must hold, and what is left for main memory.

    `unmodelled` says why this model's attention has no formula, if it has none.
    """
    placed = devices_of_layers(spec.num_hidden_layers, settings.layers, settings.split)
    per_layer = kv_bytes_per_layer(spec, cells(settings.context) * settings.slots, settings.kv_type)
    partial = settings.layers <= spec.num_hidden_layers
    low, middle, high = (mib * MIB for mib in build.overhead_mib)
    devices = []
    for i, compute in enumerate(compute_bytes(spec, settings, build)):
        terms = (
            Term.exact(WEIGHTS, weights.devices[i], "the plan, or the file's header"),
            Term(OVERHEAD, middle, low, high, build.overhead_source, "low"),
            Term.unknown(COMPUTE, unmodelled)
            if unmodelled
            else _compute_term(weights.largest, compute, partial),
            _kv_term(settings, sum(layer == i for layer in placed[:-1]), per_layer, unmodelled),
        )
        devices.append(DeviceMemory(usable_bytes, terms))
    host_layers = sum(layer is None for layer in placed[:-1])
    inputs = host_compute_bytes(spec, settings, build)
    main = (
        Term.exact(WEIGHTS, weights.host, "token_embd and what is not offloaded"),
        _kv_term(settings, host_layers, per_layer, unmodelled),
        Term.within(COMPUTE, inputs, 0.05, build.source, "high"),
        Term.exact("output buffer", output_bytes(spec, settings), "vocabulary x slots x 4 bytes"),
    )
    return tuple(devices), main


def _kv_term(
    settings: Settings, layers: int, per_layer: int | None, unmodelled: str | None
) -> Term:
    if unmodelled or per_layer is None:
        why = unmodelled or f"no formula for the cache type {settings.kv_type!r}"
        return Term.unknown(KV, why)
    return Term.exact(KV, layers * per_layer, f"{layers} layers of {per_layer:,} bytes")


def _compute_term(largest_matrix: int, compute: int, partial: bool) -> Term:
    """With layers left behind, a batch may borrow the device for the largest of their matrices."""
    source = "closed form; within 1 MiB of llama.cpp's own reserve, 10 MiB of the logs"
    if not partial:
        return Term(COMPUTE, compute, compute, compute + 10 * MIB, source, "high")
    source = "closed form, and at most one matrix borrowed by layers in main memory"
    return Term(COMPUTE, compute, compute, compute + largest_matrix, source, "low")
