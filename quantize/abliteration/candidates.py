"""Directions that might decide whether the model refuses, from a measurement's means.

In: a `Measurement`. Out: `Candidate`s, each a direction for every projection that writes to the
stream, with a strength. Two kinds, and a control:

    single     the difference of the means at one position where it enters one layer, taken out of
               every o_proj and down_proj (Arditi et al.)
    by layer   at one position, every projection forgets the difference as it stands right after it
    random     by layer, random directions: what an edit of this size does that knows nothing

Each is offered at every strength asked for; `projected` ones have what lies along the harmless mean
taken out first (grimjim). At positions whose tokens are the same in all prompts the stream that
enters layer 0 does not differ: such a candidate has no direction and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantize.abliteration.measurement import Measurement
from quantize.abliteration.prompts import PLAIN

SINGLE, BY_LAYER, RANDOM = "single", "by layer", "random"
ATTENTION, MLP = "self_attn", "mlp"
MODULES = {ATTENTION: "self_attn.o_proj", MLP: "mlp.down_proj"}
LAST_SHARE = 0.8
"""Single directions come from layers before this share of the depth."""
INDUCE_SHARE = 0.6
"""Depth at which a candidate of all layers is added, to see whether it induces refusal."""
CONTROLS = 3
_SMALLEST = 1e-6
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which direction, from where in the model, and how strongly; `position` from the end."""

    id: str
    kind: str
    variant: str
    position: int
    layer: int
    projected: bool
    strength: float

    def choice(self) -> dict[str, Any]:
        """These fields by name, without those of a subclass."""
        return {field.name: getattr(self, field.name) for field in fields(Choice)}


@dataclass(frozen=True, slots=True, eq=False)
class Candidate(Choice):
    """`directions` by (layer, block), empty where the means do not differ.

    `raw` is the difference that is added at `layer` to see whether it induces refusal.
    """

    directions: Mapping[tuple[int, str], Vector]
    raw: Vector


def make_candidates(
    found: Measurement,
    *,
    strengths: Sequence[float],
    variant: str = PLAIN,
    projected: bool = False,
    seed: int = 0,
) -> list[Candidate]:
    """All candidates of a measurement, and CONTROLS random ones at the greatest strength."""
    candidates: list[Candidate] = []
    for shape in (False, True) if projected else (False,):
        difference = _differences(found, variant, projected=shape)
        for position in range(len(found.prompts.positions)):
            back = position - len(found.prompts.positions)
            for strength in strengths:
                for kind, layer in _places(found.layers):
                    directions = _directions(difference[position], kind, layer, found.layers)
                    mark = f"{' projected' if shape else ''}{_told(variant)}"
                    where = f"layer {layer}" if kind == SINGLE else kind
                    candidates.append(
                        Candidate(
                            id=f"{where}, token {back}, x{strength:g}{mark}",
                            kind=kind,
                            variant=variant,
                            position=back,
                            layer=layer,
                            projected=shape,
                            strength=strength,
                            directions=directions,
                            raw=difference[position, 2 * layer].astype(np.float32),
                        )
                    )
    return [*candidates, *_controls(found, max(strengths), seed)]


def _told(variant: str) -> str:
    return "" if variant == PLAIN else f", {variant}"


def _places(layers: int) -> Iterator[tuple[str, int]]:
    for layer in range(layers):
        yield SINGLE, layer
    yield BY_LAYER, int(INDUCE_SHARE * layers)


def _differences(found: Measurement, variant: str, *, projected: bool) -> NDArray[np.float64]:
    """(P, S, H), without what lies along the harmless mean if asked."""
    difference = found.difference(variant)
    if not projected:
        return difference
    mean = found.harmless_mean(variant)
    norm = np.linalg.norm(mean, axis=-1, keepdims=True)
    along = np.divide(mean, norm, out=np.zeros_like(mean), where=norm > 0)
    return np.asarray(difference - (difference * along).sum(axis=-1, keepdims=True) * along)


def _directions(
    difference: NDArray[np.float64], kind: str, layer: int, layers: int
) -> dict[tuple[int, str], Vector]:
    """Unit directions by (layer, block) from differences (S, H); none if one of them is zero."""
    wanted = {
        (number, block): 2 * layer if kind == SINGLE else 2 * number + 1 + (block == MLP)
        for number in range(layers)
        for block in MODULES
    }
    norms = np.linalg.norm(difference, axis=-1)
    if any(norms[place] < _SMALLEST for place in wanted.values()):
        return {}
    return {
        key: (difference[place] / norms[place]).astype(np.float32) for key, place in wanted.items()
    }


def _controls(found: Measurement, strength: float, seed: int) -> Iterator[Candidate]:
    generator = np.random.default_rng(seed)
    difference = found.difference(PLAIN)
    layer = int(INDUCE_SHARE * found.layers)
    norm = float(np.linalg.norm(difference[-1, 2 * layer]))
    for number in range(CONTROLS):
        vectors = generator.standard_normal((2 * found.layers + 1, difference.shape[-1]))
        raw = vectors[0] / np.linalg.norm(vectors[0]) * norm
        yield Candidate(
            id=f"random {number + 1}, x{strength:g}",
            kind=RANDOM,
            variant=PLAIN,
            position=0,
            layer=layer,
            projected=False,
            strength=strength,
            directions=_directions(vectors, BY_LAYER, layer, found.layers),
            raw=raw.astype(np.float32),
        )
