"""What calibration wants to know about activations, gathered while a model runs.

For each matrix's input: the sum over tokens of squares, column by column (an imatrix), the number
of tokens and the largest magnitude (static FP8). For each layer: the largest magnitudes of what a
KV cache would hold, keys after their rotation. Sums are float64, so that the order of tokens and
the size of batches do not show. Matrices that share their input (q, k, v; gate, up) are counted
once: `wanted` names one of each.

Everything is kept as numpy, small (a vector a matrix), and survives an interruption: `to_arrays`
and `from_arrays`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantize.activations.observer import Observer

_TOKENS_AT_ONCE = 512


@dataclass(slots=True)
class InputStatistics:
    """One matrix's input: sums of squares (columns,) float64, tokens, largest magnitude."""

    sum_squares: NDArray[np.float64]
    tokens: int = 0
    absmax: float = 0.0


@dataclass(slots=True)
class Statistics(Observer):
    """The inputs of the matrices in `wanted`, by name, and the caches of layers, by number."""

    wanted: frozenset[str]
    inputs: dict[str, InputStatistics] = field(default_factory=dict)
    keys: dict[int, float] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)

    def linear_input(self, layer: int, name: str, batch: int, x: Tensor, mask: Tensor) -> None:
        """Add what enters one matrix."""
        full = f"model.layers.{layer}.{name}"
        if full not in self.wanted:
            return
        columns = x.shape[-1]
        found = self.inputs.setdefault(full, InputStatistics(np.zeros(columns)))
        for part in torch.split(x[mask], _TOKENS_AT_ONCE):
            found.sum_squares += part.double().square().sum(0).cpu().numpy()
            found.tokens += len(part)
            found.absmax = max(found.absmax, float(part.abs().max()) if len(part) else 0.0)

    def keys_values(self, layer: int, batch: int, keys: Tensor, values: Tensor) -> None:
        """Add what enters the cache; calibration's chunks have no padding."""
        self.keys[layer] = max(self.keys.get(layer, 0.0), float(keys.abs().max()))
        self.values[layer] = max(self.values.get(layer, 0.0), float(values.abs().max()))

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Everything gathered, as arrays by name."""
        arrays = {f"sums:{name}": found.sum_squares for name, found in self.inputs.items()}
        for name, found in self.inputs.items():
            arrays[f"input:{name}"] = np.array([found.tokens, found.absmax])
        for layer in self.keys:
            arrays[f"cache:{layer}"] = np.array([self.keys[layer], self.values[layer]])
        return arrays

    def from_arrays(self, arrays: Mapping[str, NDArray[np.float64]]) -> None:
        """Take up what `to_arrays` gave."""
        for key, array in arrays.items():
            kind, _, name = key.partition(":")
            if kind == "input":
                sums = np.array(arrays[f"sums:{name}"])
                self.inputs[name] = InputStatistics(sums, int(array[0]), float(array[1]))
            elif kind == "cache":
                self.keys[int(name)], self.values[int(name)] = float(array[0]), float(array[1])
