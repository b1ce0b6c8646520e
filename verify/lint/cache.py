"""Scales of an FP8 KV cache: where config.json promises them, every layer needs both.

With `kv_cache_scheme` (static) set, vLLM reads `self_attn.k_scale` and `self_attn.v_scale` and
computes with 1.0, with no more than a warning, where they are absent. Measured elsewhere on
Llama-3.1-70B: perplexity 2.887 at scale 1.0, 2.748 with scales, 2.732 in 16 bits (ROCm vLLM 317).
Older files keep them beside k_proj and v_proj; both places count. Whether the values mean anything
is looked at in `values.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

from verify.layouts import cache_scale_places
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.stored_checkpoint import StoredCheckpoint


def lint_cache(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Layers without the scales that kv_cache_scheme promises."""
    scheme = stored.quantization.kv_cache if stored.quantization else None
    if scheme is None or scheme.get("dynamic") is True:
        return
    for name in stored.modules:
        attention, _, last = name.rpartition(".")
        if last != "k_proj":
            continue
        for letter in ("k", "v"):
            places = cache_scale_places(attention, letter)
            if not any(place in stored.tensors for place in places):
                expected = "a scale, says kv_cache_scheme"
                yield finding("kv-scales-missing", places[0], "nothing", expected)
