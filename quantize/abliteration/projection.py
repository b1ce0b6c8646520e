"""The stream along a candidate's direction, layer by layer, as the model is and without it.

In: a model, its measurement and a candidate. Out: for refused and for harmless prompts that were
kept for choosing, before and after, quantiles over prompts of the projection at each of the S
places (`quantize/activations/residuals.py`), at the last token. Where each projection has its own
direction, a place is seen along that of the block that wrote last; the first place, where none has,
along the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.workers import Steps
from quantize.abliteration.candidates import ATTENTION, MLP, Candidate
from quantize.abliteration.machine import Machine
from quantize.abliteration.means import validation_prompts
from quantize.abliteration.measurement import Measurement

QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Projection:
    """By class and side ("refused before"), QUANTILES of each place: 3 lists of S numbers."""

    candidate: str
    quantiles: Mapping[str, list[list[float]]]


def measure_projection(
    place: Path,
    found: Measurement,
    candidate: Candidate,
    machine: Machine,
    on_progress: Steps | None = None,
) -> Projection:
    """One pass over the layers; weights are steered, not edited."""
    from quantize.activations.residuals import projections
    from quantize.activations.steering import NOTHING, Steering

    refused, harmless, _ = validation_prompts(found)
    kinds = {"refused": [p.ids for p in refused], "harmless": [p.ids for p in harmless]}
    without = Steering({k: (d, candidate.strength) for k, d in candidate.directions.items()})
    sides = {"before": NOTHING, "after": without}
    names = [f"{kind} {side}" for kind in kinds for side in sides]
    values = projections(
        place,
        [(prompts, how) for prompts in kinds.values() for how in sides.values()],
        _vectors(candidate, found.layers),
        device=machine.device,
        dtype=machine.dtype,
        on_progress=on_progress,
    )
    return Projection(
        candidate.id,
        {
            name: np.quantile(seen, QUANTILES, axis=0).tolist()
            for name, seen in zip(names, values, strict=True)
        },
    )


def _vectors(candidate: Candidate, layers: int) -> np.ndarray:
    """(S, H): the direction to look along at each place."""
    written = [candidate.directions[n, block] for n in range(layers) for block in (ATTENTION, MLP)]
    return np.stack([written[0], *written])
