"""One row of the ranking: a candidate, what the model does without it, why it is not sound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantize.abliteration.candidates import LAST_SHARE, RANDOM, SINGLE, Candidate, Choice

KL_LIMIT = 0.1
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranked(Choice):
    """A candidate and what the model does without it; `why` it is not sound, if it is not.

    Numbers are None where the candidate has no direction, or where they are not finite.
    """

    bypass: float | None
    bypassed: float | None
    induce: float | None
    kl: float | None
    kl_tools: float | None
    why: str | None

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against it."""
        return self.why is None


def rank(
    candidate: Candidate, layers: int, scores: Float64 | None, numbers: Sequence[float]
) -> Ranked:
    """`numbers` are KL, induce and, where prompts have tools, KL on those; none without scores."""
    padded: list[float | None] = [*map(_finite, numbers), None, None, None]
    kl, induce, kl_tools = padded[:3]
    return Ranked(
        **candidate.choice(),
        bypass=None if scores is None else _finite(float(scores.mean())),
        bypassed=None if scores is None else float((scores < 0).mean()),
        induce=induce,
        kl=kl,
        kl_tools=kl_tools,
        why=_why(candidate, layers, scores, numbers),
    )


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _why(
    candidate: Candidate, layers: int, scores: Float64 | None, numbers: Sequence[float]
) -> str | None:
    """What speaks against a candidate."""
    if candidate.kind == RANDOM:
        return "control"
    if scores is None:
        return "the means do not differ here"
    if not np.isfinite([*scores, *numbers]).all():
        return "not a number"
    kl, induce, *tools = numbers
    if kl > KL_LIMIT:
        return f"KL over {KL_LIMIT:g}"
    if tools and tools[0] > KL_LIMIT:
        return f"KL over {KL_LIMIT:g} with tools"
    if induce <= 0:
        return "does not induce refusal"
    if candidate.kind == SINGLE and candidate.layer >= math.floor(LAST_SHARE * layers):
        return f"layer not below {LAST_SHARE:g} of the depth"
    return None
