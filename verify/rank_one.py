"""Is the difference of two 16-bit matrices an abliteration: rank one, along which direction?

In: two tensors of one shape. Out: a `RankOne`, for anybody's edit, from the two checkpoints alone.
With D = W' - W (out, in), the direction r is D's first left singular vector, found by power
iteration on D D^T in float64. Rounding to 16 bits adds noise to every value, so D is never exactly
rank one; what counts is

    explained    |r^T D|^2 / |D|^2, and `floor`, the share that rounding both checkpoints puts in
                 every direction: (ulp^2 / 6) a value, in the mean. What is left of D after r may be
                 rounding and little else
    strength     of W' = W - s r (r^T W), by least squares: -<r^T D, r^T W> / |r^T W|^2
    fit          cosine of r^T D with -r^T W: 1 for an abliteration, about 0 for a rank-one update
                 that has nothing to do with W (a LoRA of rank one, say)

An embedding holds a vector of the stream in each row and is looked at transposed. Directions of
several tensors are compared by |cosine|; a sign means nothing. Two matrices are held
in float64: of a 405B model 14 GB at its largest, of an 8B 1 GB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.tensor import EPSILON, TensorInfo, to_float32
from verify.stored_checkpoint import read_items

Float64 = NDArray[np.float64]
LEFT_LIMIT = 2.0
"""What is left after r may be this many times the rounding of both checkpoints."""
FIT_LIMIT = 0.95
COMMON_COSINE = 0.95
_EMBEDDING = "embed_tokens.weight"
_ROUNDS = 100
_CONVERGED = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class RankOne:
    """How one tensor was changed; `direction` is a unit vector of the residual stream."""

    name: str
    explained: float
    left_over_rounding: float
    strength: float
    fit: float
    direction: Float64

    @property
    def is_rank_one(self) -> bool:
        """Whether what r does not explain is rounding."""
        return self.left_over_rounding <= LEFT_LIMIT

    @property
    def is_ablation(self) -> bool:
        """Whether, besides, the change is what is taken from W along r."""
        return self.is_rank_one and self.fit >= FIT_LIMIT


@dataclass(frozen=True, slots=True)
class EditSummary:
    """What the changed matrices have in common; `common` is how many share one direction."""

    tensors: tuple[str, ...]
    rank_one: int
    ablations: int
    common: int
    strengths: tuple[float, float]

    @property
    def sentence(self) -> str:
        """The finding in words."""
        low, high = self.strengths
        strength = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
        what = (
            f"{self.ablations} of {len(self.tensors)} changed matrices had one direction taken out,"
            f" at strength {strength}"
        )
        if self.ablations > 1:
            shared = f"{self.common} of them the same" if self.common > 1 else "each its own"
            what += f"; directions: {shared}"
        return what


def look_at_change(path: Path, info: TensorInfo, other: Path, theirs: TensorInfo) -> RankOne:
    """Compare one matrix of two checkpoints; they must differ."""
    w, changed = _read(path, info), _read(other, theirs)
    if info.name.endswith(_EMBEDDING):
        w, changed = w.T, changed.T
    difference = changed - w
    r = _first_direction(difference)
    along, before = r @ difference, r @ w
    total = float(np.square(difference).sum())
    part = float(np.square(along).sum())
    # Each of the two roundings moves a value uniformly within half an ulp: variance ulp^2 / 12.
    ulp = EPSILON[info.dtype] * np.exp2(np.floor(np.log2(np.maximum(np.abs(changed), 1e-38))))
    noise = float(np.square(ulp).sum()) / 12
    own = float(np.square(before).sum()) or 1.0
    cosine = -float(along @ before) / ((part**0.5) * (own**0.5) or 1.0)
    return RankOne(
        name=info.name,
        explained=part / total,
        left_over_rounding=((total - part) / noise) ** 0.5 if noise else np.inf,
        strength=-float(along @ before) / own,
        fit=cosine,
        direction=r,
    )


def _read(path: Path, info: TensorInfo) -> Float64:
    count = info.rows * info.columns
    raw = read_items(path, info, 0, count)
    return to_float32(raw, info.dtype).astype(np.float64).reshape(info.rows, info.columns)


def _first_direction(difference: Float64) -> Float64:
    """The first left singular vector, from the longest column on."""
    r = difference[:, int(np.square(difference).sum(axis=0).argmax())].copy()
    r /= np.linalg.norm(r)
    for _ in range(_ROUNDS):
        following = difference @ (r @ difference)
        following /= np.linalg.norm(following)
        moved = 1 - abs(float(following @ r))
        r = following
        if moved < _CONVERGED:
            break
    return r


def summarise(found: Sequence[RankOne]) -> EditSummary:
    """What the changed matrices have in common."""
    ablated = [one for one in found if one.is_ablation]
    common = max((_alike(one, ablated) for one in ablated), default=0)
    strengths = [one.strength for one in ablated] or [0.0]
    return EditSummary(
        tensors=tuple(one.name for one in found),
        rank_one=sum(one.is_rank_one for one in found),
        ablations=len(ablated),
        common=common,
        strengths=(min(strengths), max(strengths)),
    )


def _alike(one: RankOne, others: Sequence[RankOne]) -> int:
    """How many have this direction."""
    return sum(
        len(other.direction) == len(one.direction)
        and abs(float(other.direction @ one.direction)) >= COMMON_COSINE
        for other in others
    )
