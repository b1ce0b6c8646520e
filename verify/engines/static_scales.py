"""What is rounded to FP8 by fixed scales as a folder runs: watched, and the cache rounded if asked.

In: a loaded model of transformers. Out: a `ScaleWatch`, which keeps for every fixed scale the
largest magnitude that came before it was rounded; and `round_cache`, which rounds keys and values
of a model whose folder fixes no scales for them.

compressed-tensors puts `input_scale` on a quantized layer, `k_scale` and `v_scale` on an attention
whose cache it rounds, after the rotation of keys, and a `kv_cache` module in the cache's place.
Rounding with a scale of 1.0 is what vLLM does with `--kv-cache-dtype fp8` and a folder without
scales (magnitudes beyond 448 are clipped). Queries and the products of attention stay in float32
here; some of vLLM's kernels round them too.

Shapes: B rows, T tokens, keys and values [B, heads, T, head_dim].
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from verify.engines import StatedScale

E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
_ROUNDED = "sdpa_on_fp8_cache"


class ScaleWatch:
    """Largest magnitudes at every fixed scale, of the tokens that `mask` [B, T] lets through."""

    def __init__(self, model: Any) -> None:
        self.mask: torch.Tensor | None = None
        self._scales: dict[str, torch.Tensor] = {}
        self._seen: dict[str, float] = {}
        for name, module in model.named_modules():
            if getattr(module, "input_scale", None) is not None:
                self._watch(module, [f"{name}.input_scale"])
            if hasattr(module, "k_scale"):
                self._watch(module, [f"{name}.k_scale", f"{name}.v_scale"])

    def _watch(self, module: Any, names: list[str]) -> None:
        for name in names:
            self._scales[name] = getattr(module, name.rsplit(".", 1)[1])
            self._seen[name] = 0.0
        cached = len(names) == 2
        target = module.kv_cache if cached else module

        def see(_: Any, args: tuple[Any, ...]) -> None:
            if self.mask is not None:
                for name, x in zip(names, args, strict=False):
                    by_token = x.transpose(1, 2) if cached else x
                    largest = float(by_token[self.mask].abs().max())
                    self._seen[name] = max(self._seen[name], largest)

        target.register_forward_pre_hook(see)

    def take(self) -> tuple[StatedScale, ...]:
        """Every scale, in the model's order, and what came since they were last taken."""
        seen, self._seen = self._seen, dict.fromkeys(self._seen, 0.0)
        return tuple(
            StatedScale(name, E4M3_MAX * float(scale.float().max()), seen[name])
            for name, scale in self._scales.items()
        )


def round_by_scale(x: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
    """Values as e4m3 with a scale fixed beforehand holds them; what lies beyond it is clipped."""
    return (x / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype) * scale


def round_cache(model: Any) -> None:
    """Round keys and values to FP8 with a scale of 1.0, as they are read from the cache.

    What was rounded is not changed by rounding again, so it does not matter how often it is read.
    """
    AttentionInterface.register(_ROUNDED, _attend)
    AttentionMaskInterface.register(_ROUNDED, sdpa_mask)
    model.set_attn_implementation(_ROUNDED)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    key, value = round_by_scale(key, 1.0), round_by_scale(value, 1.0)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
