"""What abliteration asks of a model that runs layer by layer: means and steered logits.

In: prompts as token ids. Out: numpy arrays. One layer is in memory at a time (`run.py`); what grows
with the layers is only what is kept of each, one vector a place.

The places of the residual stream, S = 2 L + 1 of them: 2 l enters layer l, 2 l + 1 lies between its
attention and its MLP, and 2 L leaves the last layer, before the last norm.

Shapes: N prompts, C classes, P positions counted from a prompt's end, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convert.workers import Steps
from quantize.activations.batch import Batch, padded_batches
from quantize.activations.observer import Observer
from quantize.activations.run import Start, run_layers
from quantize.activations.saved import Progress, saver

ROWS = 16
"""Prompts in a batch."""
ATTENTION, MLP = "self_attn", "mlp"
Prompts = Sequence[Sequence[int]]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Over the prompts of each class: `total` (C, P, S, H), and `squares` (C, P, S) of norms."""

    total: Float64
    squares: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Steering:
    """What is done to the stream: directions taken out of what blocks add, a vector put in.

    `removed` maps (layer, block) to a unit vector (H) and a strength: y - s r (r . y), which is
    what the weight edit does. `added` is put into the stream that enters a layer, at every token.
    """

    removed: Mapping[tuple[int, str], tuple[NDArray[np.float32], float]] = field(
        default_factory=dict
    )
    added: tuple[int, NDArray[np.float32]] | None = None


NOTHING = Steering()


def residual_sums(
    folder: Path,
    prompts: Prompts,
    classes: Sequence[int],
    positions: int,
    layers: int,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
    on_progress: Steps | None = None,
) -> Sums:
    """Float64 sums at the last `positions` tokens of every prompt, at every place, by class."""
    batches = padded_batches(prompts, ROWS)
    watcher = _Sums(batches, classes, positions, layers)
    run_layers(
        folder,
        batches,
        [watcher],
        device=device,
        dtype=dtype,
        start=progress.take_up(dtype, watcher) if progress else None,
        after_layer=saver(progress, watcher),
        on_progress=on_progress,
    )
    assert watcher.total is not None
    return Sums(watcher.total, watcher.squares)


class _Sums(Observer):
    def __init__(
        self, batches: Sequence[Batch], classes: Sequence[int], positions: int, layers: int
    ) -> None:
        lengths = [batch.mask.sum(1) for batch in batches]
        assert all(int(length.min()) >= positions for length in lengths)
        places = torch.arange(-positions, 0)
        self._where = [length[:, None] + places for length in lengths]  # (B, P) a batch
        starts = range(0, len(classes), ROWS)
        self._classes = [list(classes[start : start + ROWS]) for start in starts]
        self._shape = (max(classes) + 1, positions, 2 * layers + 1)
        self.total: Float64 | None = None
        self.squares = np.zeros(self._shape)
        self._middle = torch.empty(0)

    def layer_input(self, layer: int, batch: int, hidden: Tensor) -> Tensor | None:
        """The stream before a layer."""
        self._entered = hidden
        self._add(2 * layer, batch, hidden)
        return None

    def block_output(self, layer: int, name: str, batch: int, hidden: Tensor) -> Tensor | None:
        """The stream after attention, and after the MLP of the last layer."""
        if name == ATTENTION:
            self._middle = self._entered + hidden
            self._add(2 * layer + 1, batch, self._middle)
        elif 2 * layer + 2 == self._shape[2] - 1:
            self._add(2 * layer + 2, batch, self._middle + hidden)
        return None

    def to_arrays(self) -> dict[str, Float64]:
        """The sums so far."""
        assert self.total is not None
        return {"total": self.total, "squares": self.squares}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `to_arrays` gave."""
        self.total, self.squares = arrays["total"], arrays["squares"]

    def _add(self, place: int, batch: int, hidden: Tensor) -> None:
        where = self._where[batch].to(hidden.device)
        picked = hidden[torch.arange(len(hidden), device=hidden.device)[:, None], where]
        values = picked.double().cpu().numpy()  # (B, P, H)
        if self.total is None:
            self.total = np.zeros((*self._shape, values.shape[-1]))
        for row, kind in enumerate(self._classes[batch]):
            self.total[kind, :, place] += values[row]
            self.squares[kind, :, place] += np.square(values[row]).sum(axis=-1)


def steered_logits(
    folder: Path,
    jobs: Sequence[tuple[Prompts, Steering]],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    start: Start | None = None,
    after_layer: Callable[[Start], None] | None = None,
    on_progress: Steps | None = None,
) -> Iterator[Float64]:
    """Log-probabilities (N, V) after each job's prompts; all jobs share one pass over layers.

    `start` and `after_layer` are those of `run_layers`.
    """
    batches: list[Batch] = []
    steering: list[Steering] = []
    ranges = []
    for prompts, how in jobs:
        found = padded_batches(prompts, ROWS)
        ranges.append(range(len(batches), len(batches) + len(found)))
        batches += found
        steering += [how] * len(found)
    final = run_layers(
        folder,
        batches,
        [_Steer(steering)],
        device=device,
        dtype=dtype,
        start=start,
        after_layer=after_layer,
        on_progress=on_progress,
    )
    for indices in ranges:
        last = [
            (index, row, int(length) - 1)
            for index in indices
            for row, length in enumerate(batches[index].mask.sum(1))
        ]
        yield torch.log_softmax(final.logits(last).double(), dim=-1).numpy()


class _Steer(Observer):
    def __init__(self, steering: Sequence[Steering]) -> None:
        self._steering = steering

    def layer_input(self, layer: int, batch: int, hidden: Tensor) -> Tensor | None:
        """Put a vector in, where the batch's steering has one for this layer."""
        added = self._steering[batch].added
        if added is None or added[0] != layer:
            return None
        return hidden + torch.from_numpy(added[1]).to(hidden)

    def block_output(self, layer: int, name: str, batch: int, hidden: Tensor) -> Tensor | None:
        """Take a direction out of what a block adds."""
        removed = self._steering[batch].removed.get((layer, name))
        if removed is None:
            return None
        direction = torch.from_numpy(removed[0]).to(hidden)
        return hidden - removed[1] * (hidden @ direction)[..., None] * direction
