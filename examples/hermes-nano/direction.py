"""hermes-nano without its refusals, while it is trained: the last stage's own view of the model.

In: the model. Out: forward passes in which some rows of a batch run without the direction that
tells refused from harmless prompts. Of each projection that writes to the residual stream (o_proj,
down_proj), the direction is the difference of the stream's means right behind it, at the last token
of the prompt; what the projection writes along it is taken out `strengths` times, row by row (0
leaves a row as it is, 1 removes, more pushes past). With one strength for all rows this equals
W - s r (r^T W), the edit of `hermes-quant abliterate`.

Shapes: B rows, N tokens, H hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM

STRENGTHS = (1.0, 1.5)
Place = tuple[int, str]  # layer, "attention" or "mlp"


class RefusalDirection:
    """Measures the direction, and removes it from the rows that `strengths` (B) names."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.strengths: torch.Tensor | None = None
        self._unit: dict[Place, torch.Tensor] = {}
        self._last: torch.Tensor | None = None
        self._means: dict[Place, torch.Tensor] = {}
        for number, layer in enumerate(model.model.layers):
            attention, mlp = (number, "attention"), (number, "mlp")
            layer.self_attn.o_proj.register_forward_hook(self._remove(attention))
            layer.mlp.down_proj.register_forward_hook(self._remove(mlp))
            layer.post_attention_layernorm.register_forward_pre_hook(self._see(attention))
            layer.register_forward_hook(self._see(mlp))

    def measure(self, refused: Iterable[list[int]], harmless: Iterable[list[int]]) -> None:
        """Take the direction anew from prompts, the ids up to the first of the reply."""
        means = self._mean(refused), self._mean(harmless)
        for place in means[0]:
            apart = means[0][place] - means[1][place]
            self._unit[place] = apart / apart.norm()

    def remove_from(self, rows: Sequence[bool], rng: random.Random) -> None:
        """The next batch runs without the direction in these rows, each by its own strength."""
        found = [rng.uniform(*STRENGTHS) if row else 0.0 for row in rows]
        self.strengths = torch.tensor(found, device=self.model.device)

    def _mean(self, prompts: Iterable[list[int]]) -> dict[Place, torch.Tensor]:
        """Means (H) of the stream at the last token of each prompt, the model as it is."""
        rows = list(prompts)
        width = max(map(len, rows))
        device = self.model.device
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in rows], device=device)
        self.strengths, self._means = None, {}
        self._last = torch.tensor([len(ids) - 1 for ids in rows], device=device)
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
            self.model.model(input_ids=padded, use_cache=False)
        self._last = None
        return self._means

    def _remove(self, place: Place) -> Any:
        def hook(_module: Any, _args: Any, written: torch.Tensor) -> torch.Tensor:
            if self.strengths is None:
                return written
            unit, wide = self._unit[place], written.float()
            along = (wide @ unit)[..., None] * unit  # (B, N, H)
            return (wide - self.strengths[:, None, None] * along).to(written.dtype)

        return hook

    def _see(self, place: Place) -> Any:
        def hook(_module: Any, args: Any, out: Any = None) -> None:
            if self._last is not None:
                stream = args[0] if out is None else out[0] if isinstance(out, tuple) else out
                rows = torch.arange(len(self._last), device=stream.device)
                self._means[place] = stream[rows, self._last].float().mean(dim=0)

        return hook
