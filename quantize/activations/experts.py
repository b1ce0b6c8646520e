"""A mixture's experts as matrices of their own, as the checkpoint has them.

transformers 5 keeps all experts of a layer in two stacked tensors and multiplies them in one call,
where nothing can watch a single matrix. Mixtral's checkpoints hold three matrices an expert; here
each is a Linear under its own name, and computes the same sum: for every token, its experts'
outputs weighted by the router.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAMES = {"mlp.": "block_sparse_moe."}
"""Where transformers and Mixtral's checkpoints call the same module differently."""


class Expert(nn.Module):
    """One gated MLP: w2(act(w1 x) * w3 x)."""

    def __init__(self, hidden: int, intermediate: int, activation: nn.Module) -> None:
        super().__init__()
        self.w1 = nn.Linear(hidden, intermediate, bias=False)
        self.w2 = nn.Linear(intermediate, hidden, bias=False)
        self.w3 = nn.Linear(hidden, intermediate, bias=False)
        self._activation = activation

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, hidden) -> (N, hidden); `mask` (N,) says which tokens are real."""
        for linear in (self.w1, self.w2, self.w3):
            linear.token_mask = mask
        found: Tensor = self.w2(self._activation(self.w1(x)) * self.w3(x))
        return found


class Experts(nn.ModuleList):
    """All experts of a layer, in place of transformers' stacked ones."""

    def __init__(self, stacked: Any) -> None:
        sizes = stacked.hidden_dim, stacked.intermediate_dim
        super().__init__(Expert(*sizes, stacked.act_fn) for _ in range(stacked.num_experts))
        self.mask = torch.empty(0)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x (N, hidden); the experts chosen for each token and their weights, (N, k) each."""
        total = torch.zeros_like(x)
        real = self.mask.reshape(-1)
        for number, expert in enumerate(self):
            tokens, place = torch.where(chosen == number)
            if len(tokens):
                output = expert(x[tokens], real[tokens]) * weights[tokens, place, None]
                total.index_add_(0, tokens, output.to(total.dtype))
        return total
