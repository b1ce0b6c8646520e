"""How one stored matrix differs from W - s r (r^T W), along r and in two ways that edits go wrong.

In: the source's matrix W (hidden, n), its line of the edit, what both artifacts store. An embedding
holds a vector of the stream in each row and is looked at transposed. Out: a `Residue`.

    M = W - s r a^T, a = r^T W, its columns rescaled if the edit keeps norms; what is meant
    E = stored - M             F = M as stored by ourselves - M, the error of storing it
    U = stored unedited - W

Rounding errors of different rows know nothing of each other, so |r^T E| should be about

    floor^2 = sum over i, j of (r_i F_ij)^2      from the very steps by which this tensor rounds

and `left` and `floor` are both given as shares of |a|. A damage that is known beforehand is a
matrix H, and how much of it is in the tensor a single number, with the noise that rounding puts in:

    c = <E, H> / <H, H>        noise^2 = sum of (F_ij H_ij)^2 / <H, H>^2

which all values of the matrix vote on. `undone` has H = W - M: 0.5 is half an edit. `rescaled` has
H = M with the norms of W's rows, less M's share in it, and E - U in place of E: quantizers of few
bits shrink rows by nearly the same in both artifacts, which so cancels (1 is the row-norm trap).

Held in memory at once: the matrix as stored in the source, and four times in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convert.checkpoint import Checkpoint
from convert.tensor import Float32, to_float32
from quantize.abliteration.edit_folder import TensorEdit
from verify.abliteration.stored import StoredTensors

EMBEDDING = "model.embed_tokens.weight"
_TINY = 2e-6
"""Share of |r^T W| that float32 arithmetic leaves."""
_VALUES_AT_ONCE = 1 << 20
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Share:
    """How much of a known damage is in a tensor (1: all of it), and what rounding makes of 0."""

    value: float
    noise: float


@dataclass(frozen=True, slots=True)
class Residue:
    """One edited tensor: what is off along r, its floor, r's share of W before, and damages."""

    name: str
    strength: float
    left: float
    floor: float
    removed: float
    undone: Share
    rescaled: Share

    @property
    def ratio(self) -> float:
        """Left over floor."""
        return self.left / max(self.floor, _TINY)


@dataclass(frozen=True, slots=True)
class _Meant:
    """W and M, handed out in slices of rows as float64."""

    w: Float32
    r: Float64
    strength: float
    along: Float64
    factors: Float64

    @classmethod
    def of(cls, w: Float32, r: Float64, strength: float, *, keep_norms: bool) -> _Meant:
        along, columns = np.zeros(w.shape[1]), np.ones(w.shape[1])
        for rows in _slices(w):
            along += r[rows] @ w[rows].astype(np.float64)
        meant = cls(w, r, strength, along, columns)
        if keep_norms:
            before, after = np.zeros_like(along), np.zeros_like(along)
            for rows in _slices(w):
                old, new = meant.pair(rows)
                before += np.square(old).sum(axis=0)
                after += np.square(new).sum(axis=0)
            np.sqrt(np.divide(before, after, out=columns, where=after > 0), out=columns)
        return meant

    def pair(self, rows: slice) -> tuple[Float64, Float64]:
        """Rows of W and of M."""
        w = self.w[rows].astype(np.float64)
        return w, (w - self.strength * self.r[rows, None] * self.along) * self.factors

    def whole(self) -> Float32:
        """All of M."""
        return np.concatenate([self.pair(rows)[1].astype(np.float32) for rows in _slices(self.w)])


def _slices(w: Float32) -> Iterator[slice]:
    step = max(1, _VALUES_AT_ONCE // w.shape[1])
    for start in range(0, w.shape[0], step):
        yield slice(start, start + step)


def measure_residue(
    base: Checkpoint,
    line: TensorEdit,
    direction: Float32,
    keep_norms: bool,
    plain: Float32,
    edited: Float32,
    stored: StoredTensors,
) -> Residue:
    """One edited tensor; `plain` and `edited` are what both artifacts have in its place."""
    info = base.tensors[line.tensor]
    w = to_float32(base.read_rows(info, 0, info.rows).raw, info.dtype)
    turned = line.tensor == EMBEDDING
    if turned:
        w, plain, edited = w.T, plain.T, edited.T
    r = direction.astype(np.float64)
    meant = _Meant.of(w, r, line.strength, keep_norms=keep_norms)
    whole = meant.whole()
    own = stored.rounded(line.tensor, whole.T if turned else whole)
    own = own.T if turned else own
    sums = _Sums(np.zeros(w.shape[1]))
    for rows in _slices(w):
        sums.add(r[rows], *meant.pair(rows), plain[rows], edited[rows], own[rows])
    scale = float(np.linalg.norm(meant.along)) or 1.0
    return Residue(
        name=line.tensor,
        strength=line.strength,
        left=float(np.linalg.norm(sums.off)) / scale,
        floor=sums.floor**0.5 / scale,
        removed=scale / (sums.total**0.5 or 1.0),
        undone=Share(sums.undone / (sums.edit or 1.0), sums.undone_noise**0.5 / (sums.edit or 1.0)),
        rescaled=sums.rescaled(),
    )


class _Sums:
    """What is added up over slices of rows; letters as in the module's head."""

    def __init__(self, off: Float64) -> None:
        self.off = off  # r^T E
        self.floor = self.total = 0.0
        self.edit = self.undone = self.undone_noise = 0.0  # H = W - M
        self._rows: list[Float64] = []  # (4, rows): |W|, |M|, <E - U, M>, noise, of each row

    def add(
        self, r: Float64, w: Float64, m: Float64, plain: Float32, edited: Float32, own: Float32
    ) -> None:
        """The next rows."""
        e, f = edited.astype(np.float64) - m, own.astype(np.float64) - m
        u = plain.astype(np.float64) - w
        h = w - m
        self.off += r @ e
        self.floor += float((np.square(r)[:, None] * np.square(f)).sum())
        self.total += float(np.square(w).sum())
        self.edit += float(np.square(h).sum())
        self.undone += float((e * h).sum())
        self.undone_noise += float(np.square(f * h).sum())
        noise = ((np.square(f) + np.square(u)) * np.square(m)).sum(axis=1)
        norms = (np.linalg.norm(matrix, axis=1) for matrix in (w, m))
        self._rows.append(np.stack([*norms, ((e - u) * m).sum(axis=1), noise]))

    def rescaled(self) -> Share:
        """H is M with row i times gain_i, where a gain common to all rows is no damage."""
        old, new, found, noise = np.concatenate(self._rows, axis=1)
        gain = np.divide(old, new, out=np.ones_like(old), where=new > 0) - 1
        squares = np.square(new)
        gain -= float((gain * squares).sum()) / (float(squares.sum()) or 1.0)
        size = float((np.square(gain) * squares).sum())
        if not size:
            return Share(0.0, 0.0)
        return Share(
            float((gain * found).sum()) / size, float((np.square(gain) * noise).sum()) ** 0.5 / size
        )
