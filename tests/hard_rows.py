"""Rows that a vectorised quantizer could get wrong, and importance to go with them.

Every row is one of `KINDS`, drawn anew from a seed: usual weights, heavy tails, constants, zeros of
both signs, subnormal and huge numbers, ranges of a few last places, one-sided rows, sparse rows,
blocks of different size side by side. All values are finite float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from convert.tensor import Array, Float32, to_float32

Row = NDArray[np.float64]
Random = np.random.Generator


def _outlier(random: Random, n: int, scale: float) -> Row:
    row = np.zeros(n) if random.random() < 0.5 else random.standard_normal(n) * scale
    row[random.integers(n)] = scale * random.choice([-300, 300])
    return row


def _tiny_range(random: Random, n: int, scale: float) -> Row:
    offset = random.choice([-1, 1]) * 2.0 ** random.integers(-20, 20)
    return (1 + random.integers(-2, 3, n) * 2.0**-23) * offset


def _one_sided(random: Random, n: int, scale: float) -> Row:
    row = np.abs(random.standard_normal(n)) + random.choice([0, 10, 1000])
    return row * scale * random.choice([-1, 1])


KINDS: dict[str, Callable[[Random, int, float], Row]] = {
    "normal": lambda random, n, scale: random.standard_normal(n) * scale,
    "student": lambda random, n, scale: random.standard_t(2, n) * scale,
    "cauchy": lambda random, n, scale: random.standard_cauchy(n) * scale,
    "constant": lambda random, n, scale: np.full(n, scale * random.choice([-1, 1])),
    "zero": lambda random, n, scale: np.zeros(n),
    "signed zero": lambda random, n, scale: random.choice([0.0, -0.0], n),
    "subnormal": lambda random, n, scale: random.standard_normal(n) * 1e-41,
    "huge": lambda random, n, scale: random.standard_normal(n) * 10 ** random.uniform(3, 38),
    "outlier": _outlier,
    "tiny range": _tiny_range,
    "one-sided": _one_sided,
    "levels": lambda random, n, scale: random.integers(-4, 5, n) * scale,
    "sparse": lambda random, n, scale: (
        random.standard_normal(n) * scale * (random.random(n) < 0.05)
    ),
    "uneven": lambda random, n, scale: (
        random.standard_normal(n) * 10 ** np.repeat(random.uniform(-20, 4, n // 16), 16)
    ),
    "spread": lambda random, n, scale: random.standard_normal(n) * 10 ** random.uniform(-45, 4, n),
}


def hard_rows(random: Random, rows: int, columns: int) -> Float32:
    """(rows, columns), each row of a kind and a scale of its own."""
    kinds = list(KINDS.values())
    drawn = [
        kinds[random.integers(len(kinds))](random, columns, 10 ** random.uniform(-6, 3))
        for _ in range(rows)
    ]
    return np.clip(np.stack(drawn), -3e38, 3e38).astype(np.float32)


def stored_as(values: Float32, dtype: str) -> tuple[Array, Float32]:
    """The values cut to `dtype`: as its storage, and as the float32 that it stands for."""
    if dtype == "F32":
        return values, values
    if dtype == "BF16":
        raw: Array = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        raw = np.clip(values, -65504, 65504).astype(np.float16)
    return raw, to_float32(raw, dtype)


def hard_importance(random: Random, columns: int) -> Float32:
    """(columns,): as collected, with holes, all zero, all one, or spread over many decades."""
    squares = random.chisquare(1, columns)
    choices = [
        squares,
        squares * (random.random(columns) < 0.5),
        squares * np.repeat(random.random(columns // 32) < 0.5, 32),
        np.zeros(columns),
        np.ones(columns),
        10 ** random.uniform(-6, 6, columns),
        10 ** random.uniform(-30, 20, columns),
    ]
    return choices[random.integers(len(choices))].astype(np.float32)
