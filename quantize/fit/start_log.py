"""What a start-up log of vLLM or llama.cpp says about memory: settings and measured sizes.

In: the text of a log, any version from 2024 on, with whatever stands before each line. Out: a
`StartLog`. Both engines print sizes in MiB or GiB to two decimals, which is all that is known of
them. A log with neither engine's words is refused. Where a server was started more than once in one
log, the last start counts, except that vLLM's ranks all print the same lines: one is enough.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError
from quantize.fit.gpu import MIB

GIB = 1 << 30
_VLLM_SIZES = {
    "weights": (
        r"[Mm]odel loading took ([\d.]+) ?Gi?B",
        r"[Ll]oading model weights took ([\d.]+) ?Gi?B",
        r"[Mm]odel weights take ([\d.]+) ?GiB",
        r"weights memory: ([\d.]+) ?GiB",
    ),
    "outside torch": (
        r"non_torch_memory takes ([\d.]+) ?GiB",
        r"non-torch forward increase memory: ([\d.]+) ?GiB",
    ),
    "activation peak": (
        r"activation peak memory takes ([\d.]+) ?GiB",
        r"torch peak memory increase: ([\d.]+) ?GiB",
    ),
    "CUDA graphs": (r"[Gg]raph capturing finished in .*?took ([\d.]+) ?GiB",),
    "KV cache": (
        r"[Aa]vailable KV cache memory: (-?[\d.]+) ?GiB",
        r"reserved for KV Cache is (-?[\d.]+) ?GiB",
    ),
    "device": (r"total_gpu_memory \(([\d.]+) ?GiB\)",),
}
_VLLM_SETTINGS = {
    "context": (r"max_seq_len=(\d+)", r"'max_model_len': (\d+)"),
    "utilization": (
        r"'gpu_memory_utilization': ([\d.]+)",
        r"gpu_memory_utilization \(([\d.]+)\)",
        r"gpu_memory_utilization=([\d.]+)",
    ),
    "sequences": (r"'max_num_seqs': (\d+)", r"max_num_seqs=(\d+)"),
    "batched_tokens": (r"'max_num_batched_tokens': (\d+)", r"max_num_batched_tokens=(\d+)"),
    "ranks": (r"tensor_parallel_size=(\d+)",),
    "stages": (r"pipeline_parallel_size=(\d+)",),
    "kv_type": (r"kv_cache_dtype=([\w.]+)",),
    "eager": (r"enforce_eager=(True|False)",),
    "version": (r"LLM engine \(v(\d+\.\d+)", r"vLLM (?:API server )?version v?(\d+\.\d+)"),
    "tokens": (r"GPU KV cache size: ([\d,]+) tokens",),
    "blocks": (r"# (?:GPU|cuda) blocks: (\d+)",),
}
_LLAMA_SETTINGS = {
    "context": r"\bn_ctx +=\s*(\d+)",
    "slots": r"\bn_seq_max +=\s*(\d+)",
    "micro_batch": r"\bn_ubatch +=\s*(\d+)",
    "flash_attention": r"\bflash_attn +=\s*(\w+)",
    "offloaded": r"offloaded (\d+)/\d+ layers",
    "layers": r"offloaded \d+/(\d+) layers",
    "outputs": r"\bn_outputs_max +=\s*(\d+)",
    "kv_type": r"K \((\w+)\):",
}
_LLAMA_SIZE = re.compile(r"(\S+)\s+(?:(model|KV|output|compute) )?buffer size\s*=\s*([\d.]+) MiB")
_HOST = re.compile(r"CPU|Host|_Mapped|AARCH64|REPACK", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Measured:
    """A size that a log states: which term, on which device (None: in main memory, or a rank)."""

    term: str
    device: str | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StartLog:
    """One start: the engine, its settings as printed, and what it measured."""

    engine: str
    settings: dict[str, str]
    measured: tuple[Measured, ...]
    is_old: bool = False

    def size(self, term: str) -> int | None:
        """The first size stated for a term."""
        return next((m.size_bytes for m in self.measured if m.term == term), None)


def read_start_log(path: Path) -> StartLog:
    """Parse the log at `path`; InputError where it is no start-up log of either engine."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if _LLAMA_SIZE.search(text):
        return _llama(text)
    found = _vllm(text)
    if not found.measured:
        raise InputError(
            f"{path}: no memory of vLLM or llama.cpp is stated in it; give the log of a start-up"
        )
    return found


def _last(patterns: tuple[str, ...] | str, text: str) -> str | None:
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        if matches := re.findall(pattern, text):
            return str(matches[-1])
    return None


def _vllm(text: str) -> StartLog:
    measured = []
    for term, patterns in _VLLM_SIZES.items():
        if (value := _last(patterns, text)) is not None:
            measured.append(Measured(term, None, round(float(value) * GIB)))
    settings = {
        key: value.replace(",", "")
        for key, patterns in _VLLM_SETTINGS.items()
        if (value := _last(patterns, text)) is not None
    }
    return StartLog("vllm", settings, tuple(measured))


def _llama(text: str) -> StartLog:
    settings = {
        key: value
        for key, pattern in _LLAMA_SETTINGS.items()
        if (value := _last(pattern, text)) is not None
    }
    sizes: dict[tuple[str, str | None], int] = {}
    names = {"model": "weights", "KV": "KV cache", "output": "output buffer", None: "weights"}
    for place, kind, value in _LLAMA_SIZE.findall(text):
        term = names.get(kind or None, "compute buffer")
        device = None if _HOST.search(place) else place
        size = round(float(value) * MIB)
        same = term == "weights" and (term, device) in sizes and device is None
        sizes[term, device] = size + (sizes[term, device] if same else 0)
    measured = tuple(Measured(term, device, size) for (term, device), size in sizes.items())
    old = "llm_load_tensors" in text or "llama_new_context_with_model" in text
    if "server" in text and "outputs" not in settings and not old:
        settings["outputs"] = settings.get("slots", "1")
    return StartLog("llama.cpp", settings, measured, is_old=old)
