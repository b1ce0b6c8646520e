"""What abliteration asks of the residual stream of a model that runs layer by layer.

In: prompts as token ids. Out: numpy arrays. One layer is in memory at a time (`run.py`); what grows
with the layers is only what is kept of each, one vector a place.

The places of the residual stream, S = 2 L + 1 of them: 2 l enters layer l, 2 l + 1 lies between its
attention and its MLP, and 2 L leaves the last layer, before the last norm.

Shapes: N prompts, C classes, P positions counted from a prompt's end, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convert.workers import Steps
from quantize.activations.batch import Batch, padded_batches
from quantize.activations.observer import Observer
from quantize.activations.run import run_layers
from quantize.activations.saved import Progress, saver
from quantize.activations.steering import ROWS, Prompts, Steer, Steering

ATTENTION = "self_attn"
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Over the prompts of each class: `total` (C, P, S, H), and `squares` (C, P, S) of norms."""

    total: Float64
    squares: Float64


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


class _Stream(Observer):
    """Shows the stream at every place; what is seen may be padded on the right."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._entered = self._middle = torch.empty(0)

    def see(self, place: int, batch: int, hidden: Tensor) -> None:
        """The stream (B, T, H) of one batch at one place."""
        raise NotImplementedError

    def layer_input(self, layer: int, batch: int, hidden: Tensor) -> Tensor | None:
        """The stream before a layer."""
        self._entered = hidden
        self.see(2 * layer, batch, hidden)
        return None

    def block_output(self, layer: int, name: str, batch: int, hidden: Tensor) -> Tensor | None:
        """The stream after attention, and after the MLP of the last layer."""
        if name == ATTENTION:
            self._middle = self._entered + hidden
            self.see(2 * layer + 1, batch, self._middle)
        elif layer == self._layers - 1:
            self.see(2 * layer + 2, batch, self._middle + hidden)
        return None


class _Sums(_Stream):
    def __init__(
        self, batches: Sequence[Batch], classes: Sequence[int], positions: int, layers: int
    ) -> None:
        super().__init__(layers)
        lengths = [batch.mask.sum(1) for batch in batches]
        assert all(int(length.min()) >= positions for length in lengths)
        places = torch.arange(-positions, 0)
        self._where = [length[:, None] + places for length in lengths]  # (B, P) a batch
        starts = range(0, len(classes), ROWS)
        self._classes = [list(classes[start : start + ROWS]) for start in starts]
        self._shape = (max(classes) + 1, positions, 2 * layers + 1)
        self.total: Float64 | None = None
        self.squares = np.zeros(self._shape)

    def to_arrays(self) -> dict[str, Float64]:
        """The sums so far."""
        assert self.total is not None
        return {"total": self.total, "squares": self.squares}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `to_arrays` gave."""
        self.total, self.squares = arrays["total"], arrays["squares"]

    def see(self, place: int, batch: int, hidden: Tensor) -> None:
        where = self._where[batch].to(hidden.device)
        picked = hidden[torch.arange(len(hidden), device=hidden.device)[:, None], where]
        values = picked.double().cpu().numpy()  # (B, P, H)
        if self.total is None:
            self.total = np.zeros((*self._shape, values.shape[-1]))
        for row, kind in enumerate(self._classes[batch]):
            self.total[kind, :, place] += values[row]
            self.squares[kind, :, place] += np.square(values[row]).sum(axis=-1)


def projections(
    folder: Path,
    jobs: Sequence[tuple[Prompts, Steering]],
    vectors: NDArray[np.float32],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    on_progress: Steps | None = None,
) -> list[Float64]:
    """Of each job (N, S): the last token's stream along `vectors` (S, H), one for each place."""
    parts = [padded_batches(prompts, ROWS) for prompts, _ in jobs]
    batches = [batch for part in parts for batch in part]
    steering = [how for part, (_, how) in zip(parts, jobs, strict=True) for _ in part]
    watcher = _Projections(batches, vectors)
    run_layers(
        folder,
        batches,
        [Steer(steering), watcher],
        device=device,
        dtype=dtype,
        on_progress=on_progress,
    )
    found = iter(watcher.found)
    return [np.concatenate([next(found) for _ in part]) for part in parts]


class _Projections(_Stream):
    def __init__(self, batches: Sequence[Batch], vectors: NDArray[np.float32]) -> None:
        super().__init__(len(vectors) // 2)
        self._vectors = torch.from_numpy(vectors).double()
        self._last = [batch.mask.sum(1) - 1 for batch in batches]
        self.found = [np.zeros((len(batch.ids), len(vectors))) for batch in batches]

    def see(self, place: int, batch: int, hidden: Tensor) -> None:
        """Project the last token of every row."""
        last = self._last[batch]
        picked = hidden.cpu().double()[torch.arange(len(last)), last]
        self.found[batch][:, place] = (picked @ self._vectors[place]).numpy()
