"""What may be watched while a model runs, and how watchers are put into a layer.

`Observer` does nothing; subclass it and override what is needed. `layer` and `batch` count from 0.
Matrices go by the checkpoint's names within the layer ("self_attn.q_proj", "mlp.down_proj",
"block_sparse_moe.experts.3.w1"), so that "model.layers.{layer}.{name}.weight" is the tensor.

Tensors are the ones the model computes with: in its dtype, on its device, padding included; they
are not to be changed in place. `x[mask]` are the real tokens. Where a method may return a tensor,
that one is used instead.

Shapes: B rows, T tokens, H hidden size, D head size. A mixture's expert gets the N tokens sent to
it, as (N, H), with a mask of (N,).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

BLOCKS = ("self_attn", "mlp")
"""The two parts of a layer whose outputs are added to the residual stream."""


class Observer:
    """Sees everything, does nothing."""

    def layer_input(self, layer: int, batch: int, hidden: Tensor) -> Tensor | None:
        """The residual stream that enters the layer, (B, T, H)."""
        return None

    def linear_input(self, layer: int, name: str, batch: int, x: Tensor, mask: Tensor) -> None:
        """What enters a matrix: (B, T, in) with the batch's mask."""

    def keys_values(self, layer: int, batch: int, keys: Tensor, values: Tensor) -> None:
        """What a KV cache would hold, rotated keys and values: (B, KV heads, T, D) each."""

    def block_output(self, layer: int, name: str, batch: int, hidden: Tensor) -> Tensor | None:
        """What "self_attn" or "mlp" adds to the residual stream, (B, T, H)."""
        return None

    def layer_done(self, layer: int) -> None:
        """Every batch has gone through the layer."""


class Watch:
    """The observers as seen from one layer while one batch goes through it."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)
        self.layer, self.batch = 0, 0
        self.mask = torch.empty(0)

    def layer_input(self, hidden: Tensor) -> Tensor:
        """The layer's input after every observer had its say."""
        for observer in self.observers:
            replaced = observer.layer_input(self.layer, self.batch, hidden)
            hidden = hidden if replaced is None else replaced
        return hidden

    def keys_values(self, keys: Tensor, values: Tensor) -> None:
        """Show the observers what goes into the KV cache."""
        for observer in self.observers:
            observer.keys_values(self.layer, self.batch, keys, values)

    def layer_done(self) -> None:
        """Tell the observers that the layer is finished."""
        for observer in self.observers:
            observer.layer_done(self.layer)

    @contextmanager
    def hooks(self, layer: nn.Module, names: dict[str, str]) -> Iterator[None]:
        """Hooks on every matrix and on both blocks of a layer; `names` maps ours to the file's."""
        handles = []
        for name, module in layer.named_modules():
            if isinstance(module, nn.Linear):
                shown = _renamed(name, names)
                handles.append(module.register_forward_pre_hook(self._linear(shown)))
        for name in BLOCKS:
            module = layer.get_submodule(name)
            handles.append(module.register_forward_hook(self._block(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _linear(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            mask = getattr(module, "token_mask", self.mask)
            for observer in self.observers:
                observer.linear_input(self.layer, name, self.batch, x, mask)

        return hook

    def _block(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            for observer in self.observers:
                replaced = observer.block_output(self.layer, name, self.batch, hidden)
                hidden = hidden if replaced is None else replaced
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
