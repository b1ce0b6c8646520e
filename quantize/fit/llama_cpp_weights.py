"""Where llama.cpp puts the weights: which layer on which device, and what stays in main memory.

`token_embd` stays in main memory whatever is offloaded. Layer i goes to the device whose share of
the split covers i / active layers, and the head counts as one layer more (`src/llama-model.cpp`,
read at commit 0c1e570). A model with tied embeddings keeps a second copy, as its head, on the last
device. Exact to 0.01 MiB on the split logs of 70B and 405B. Sizes in bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from convert.model_spec import ModelSpec
from quantize.fit.candidate import Candidate

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def devices_of_layers(layers: int, offloaded: int, split: Sequence[float]) -> list[int | None]:
    """The device of every layer and, last, of the head; None means main memory."""
    total = sum(split)
    bounds = [share / total for share in itertools.accumulate(split)]
    first, active = max(layers + 1 - offloaded, 0), min(offloaded, layers + 1)
    placed: list[int | None] = []
    for layer in range(layers + 1):
        if layer < first:
            placed.append(None)
            continue
        at = (layer - first) / active
        device = next((i for i, bound in enumerate(bounds) if at < bound), len(split) - 1)
        placed.append(device)
    return placed


@dataclass(frozen=True, slots=True)
class Sections:
    """A file's weight bytes by where they go together; `head` is the second copy if tied."""

    embedding: int
    layers: tuple[int, ...]
    head: int
    tied: bool
    largest: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Weight bytes in main memory, on each device, and of the largest matrix."""

    host: int
    devices: tuple[int, ...]
    largest: int


def sections_of(candidate: Candidate, spec: ModelSpec) -> Sections:
    """Sum a candidate's tensors by layer; what has no layer goes with the head."""
    layers = [0] * spec.num_hidden_layers
    embedding = head = 0
    for tensor in candidate.tensors:
        if tensor.name == _EMBEDDING:
            embedding = tensor.size_bytes
        elif tensor.layer is None:
            head += tensor.size_bytes
        else:
            layers[tensor.layer] += tensor.size_bytes
    tied = all(tensor.name != _HEAD for tensor in candidate.tensors)
    largest = max((tensor.size_bytes for tensor in candidate.tensors), default=0)
    return Sections(embedding, tuple(layers), head + (embedding if tied else 0), tied, largest)


def place_weights(sections: Sections, layers: int, split: Sequence[float]) -> Weights:
    """Where the weights go when `layers` (the head among them) are offloaded over `split`."""
    placed = devices_of_layers(len(sections.layers), layers, split)
    host, devices = sections.embedding, [0] * len(split)
    for at, size in zip(placed, (*sections.layers, sections.head), strict=True):
        if at is None:
            host += size
        else:
            devices[at] += size
    if sections.tied and placed[-1] is None:
        host -= sections.embedding  # one copy serves both ends
    return Weights(host, tuple(devices), sections.largest)
