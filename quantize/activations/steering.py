"""What a model says when directions are taken out of its stream, or a vector is put in.

In: prompts as token ids, each set with its own steering. Out: log-probabilities of the next token.
All sets go through a layer while it is loaded (`run.py`), so that many candidates cost one pass
over the checkpoint.

Shapes: N prompts, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convert.workers import Steps
from quantize.activations.batch import Batch, padded_batches
from quantize.activations.observer import Observer
from quantize.activations.run import Start, run_layers

ROWS = 16
"""Prompts in a batch."""
Prompts = Sequence[Sequence[int]]
Float64 = NDArray[np.float64]


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
        [Steer(steering)],
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


class Steer(Observer):
    """Does to each batch what its steering says."""

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
