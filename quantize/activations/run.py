"""A whole model over a set of prompts with one layer in memory.

In: a checkpoint folder and batches of ids. Out: the states after the last norm, and logits for the
positions asked for. Peak memory is one layer, one batch's intermediates and the hidden states of
all prompts, (tokens, H) in `dtype` on the CPU; the number of layers does not enter.

Whoever wants to go on after an interruption keeps what `after_layer` is given, the states that
enter the next layer, and passes it back as `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from convert.checkpoint import Checkpoint
from convert.errors import TensorError
from convert.workers import Steps
from quantize.activations.batch import Batch
from quantize.activations.layers import Layers
from quantize.activations.observer import Observer, Watch

"""Called with what is at work, the batches it has done, and all batches."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Where to begin: the states that enter layer `layer`, one (B, T, H) a batch."""

    layer: int
    hidden: Sequence[Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class FinalStates:
    """States after the last norm, one (B, T, H) a batch, on the CPU."""

    hidden: tuple[Tensor, ...]
    _folder: Path
    _device: str
    _dtype: str

    def logits(self, positions: Sequence[tuple[int, int, int]]) -> Tensor:
        """Float32 logits (N, vocabulary) at N positions, each (batch, row, token)."""
        rows = torch.stack([self.hidden[batch][row, token] for batch, row, token in positions])
        with Checkpoint.open(self._folder) as checkpoint, torch.inference_mode():
            return Layers(checkpoint, self._device, self._dtype).logits(rows)


@torch.inference_mode()
def run_layers(
    checkpoint_folder: Path,
    batches: Sequence[Batch],
    observers: Sequence[Observer] = (),
    *,
    device: str = "cpu",
    dtype: str = "float32",
    start: Start | None = None,
    after_layer: Callable[[Start], None] | None = None,
    on_progress: Steps | None = None,
) -> FinalStates:
    """Run every layer of the checkpoint over every batch, and show it to the observers.

    Raises TensorError when a layer's output is not finite (float16 overflows on some models).
    """
    watch = Watch(observers)
    with Checkpoint.open(checkpoint_folder) as checkpoint:
        layers = Layers(checkpoint, device, dtype)
        if start is None:
            first, hidden = 0, [layers.embed(batch.ids) for batch in batches]
        else:
            first, hidden = start.layer, list(start.hidden)
        for number in range(first, len(layers)):
            watch.layer = number
            with layers.load(number) as layer, watch.hooks(layer, layers.renamed):
                for index, batch in enumerate(batches):
                    watch.batch = index
                    hidden[index] = _through(layers, layer, watch, batch, hidden[index])
                    if on_progress is not None:
                        on_progress(f"layer {number} of {len(layers)}", index + 1, len(batches))
            watch.layer_done()
            if after_layer is not None:
                after_layer(Start(number + 1, tuple(hidden)))
        final = tuple(layers.normalise(states) for states in hidden)
    return FinalStates(final, checkpoint_folder, device, dtype)


def _through(layers: Layers, layer: Any, watch: Watch, batch: Batch, hidden: Tensor) -> Tensor:
    """One batch through the layer that is loaded; (B, T, H) on the CPU both ways."""
    watch.mask = batch.mask.to(layers.device)
    if layers.renamed:
        layer.mlp.experts.mask = watch.mask
    entered = watch.layer_input(hidden.to(layers.device))
    left = layers.forward(entered, watch.mask, _Cache(watch)).cpu()
    if not left.isfinite().all():
        raise TensorError(
            f"layer {watch.layer}: its output is not finite in {left.dtype}; use --dtype float32"
        )
    return left


class _Cache(transformers.DynamicCache):
    """A KV cache for one pass, which shows what is put into it."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any, **more: Any
    ) -> tuple[Tensor, Tensor]:
        self._watch.keys_values(key_states, value_states)
        return key_states, value_states
