"""A measurement on disk: what `measure` leaves and `select` reads.

    measurement.json         the model and the prompt sets by hash, every prompt's ids and whether
                             the model refused it, the baseline rates, positions, sizes
    measurement.safetensors  VARIANT.CLASS (P, S, H) float64 means of the residual stream at P
                             positions and S = 2 L + 1 places, and VARIANT.CLASS.squares (P, S),
                             means of squared norms

Classes are "refused" and "harmless", or "complied" in place of "harmless" where prompts of one set
were contrasted. Places are those of `quantize/activations/residuals.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import InputError
from convert.model import Model
from convert.staging import write_whole
from quantize.abliteration.edit_folder import read_vectors, write_vectors, writing
from quantize.abliteration.prompts import HARMLESS, REFUSED, PromptSet

JSON_NAME, ARRAYS_NAME = "measurement.json", "measurement.safetensors"
SCHEMA_VERSION = 2
COMPLIED = "complied"
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Baseline:
    """How often the model refuses as it is, by phrase list and by first-token score."""

    refused: int
    refused_by_score: int
    prompts: int
    harmless_refused: int
    harmless_prompts: int
    first_tokens: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Share of the refused prompts that are refused."""
        return self.refused / self.prompts


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """See the module's head; `made_of` says by digest what of, by name; `arrays` may be empty."""

    made_of: Mapping[str, str]
    contrast: str
    layers: int
    prompts: PromptSet
    baseline: Baseline
    arrays: Mapping[str, Float64]

    @property
    def fingerprint(self) -> str:
        """sha256 of what it was made of."""
        return hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants that were measured."""
        ending = f".{REFUSED}"
        return tuple(n.removesuffix(ending) for n in self.arrays if n.endswith(ending))

    def check_model(self, model: Model, folder: Path) -> None:
        """InputError for a model of another size than was measured, here in `folder`."""
        spec = model.checkpoint.spec
        hidden = self.difference(self.variants[0]).shape[-1] if self.arrays else spec.hidden_size
        if (spec.num_hidden_layers, spec.hidden_size) != (self.layers, hidden):
            raise InputError(
                f"{folder}: measured on a model of {self.layers} layers and hidden size {hidden};"
                f" {model.checkpoint.path} has {spec.num_hidden_layers} and {spec.hidden_size}"
            )

    def difference(self, variant: str) -> Float64:
        """Mean of the refused minus mean of the others, (P, S, H)."""
        refused, others = (self.arrays[f"{variant}.{k}"] for k in (REFUSED, self.contrast))
        return np.asarray(refused - others)

    def harmless_mean(self, variant: str) -> Float64:
        """Mean of what is not refused, (P, S, H)."""
        return self.arrays[f"{variant}.{self.contrast}"]

    def separation(self, variant: str) -> Float64:
        """Distance of the two means over the spread within the classes, (P, S)."""
        spread = np.zeros(())
        for kind in (REFUSED, self.contrast):
            mean = self.arrays[f"{variant}.{kind}"]
            within = self.arrays[f"{variant}.{kind}.squares"] - np.square(mean).sum(axis=-1)
            spread = spread + np.maximum(within, 0) / 2
        apart = np.linalg.norm(self.difference(variant), axis=-1)
        found: Float64 = np.zeros_like(apart)
        np.divide(apart, np.sqrt(spread), out=found, where=spread > 1e-12)
        return found


def write_measurement(folder: Path, found: Measurement) -> None:
    """Write it; arrays first, so that a readable JSON never lacks what it speaks of."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "made_of": dict(found.made_of),
        "complete": bool(found.arrays),
        "contrast": found.contrast,
        "layers": found.layers,
        "baseline": {**asdict(found.baseline), "rate": found.baseline.rate},
        "prompts": found.prompts.to_dict(),
    }
    with writing(folder):
        if found.arrays:
            write_vectors(folder / ARRAYS_NAME, found.arrays)
        write_whole(
            folder / JSON_NAME, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()
        )


def read_measurement(folder: Path) -> Measurement:
    """Read what `measure` wrote; without arrays where it has only got as far as the baseline."""
    path = folder / JSON_NAME
    try:
        data: dict[str, Any] = json.loads(path.read_bytes())
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {data['schema_version']}")
        if not isinstance(data["made_of"], dict):
            raise ValueError("made_of is no object")
        baseline = {k: v for k, v in data["baseline"].items() if k != "rate"}
        baseline["first_tokens"] = tuple(baseline["first_tokens"])
        return Measurement(
            made_of=data["made_of"],
            contrast=data["contrast"],
            layers=data["layers"],
            prompts=PromptSet.from_dict(data["prompts"]),
            baseline=Baseline(**baseline),
            arrays=read_vectors(folder / ARRAYS_NAME) if data["complete"] else {},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a measurement this version reads ({error}); run abliterate measure"
        ) from error


CONTRASTS = (HARMLESS, COMPLIED)
