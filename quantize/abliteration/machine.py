"""Where, and in what numbers, a model is computed that is measured or chosen for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and in what numbers the model is computed."""

    device: str = "cpu"
    dtype: str = "float32"


ON_CPU = Machine()
