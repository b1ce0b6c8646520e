"""The tensors of a folder beside the source's, one by one: bits, bounds, or errors.

In: the source's checkpoint and a folder made from it. Out: a `Compared` for each tensor, or an
error that says why there is none. What is compared depends on how the folder stores a tensor:

    as the source       every bit
    E4M3 under floats   every element against its bound (`rounding.py`), whatever rounded it; where
                        one is beyond it, the errors below, unless the scales are those of rounding
                        to nearest: then nothing but GPTQ, which config.json states, or damage
                        takes an element out of bounds
    anything else       encoded again: equal bytes, or errors within the limits of
                        `encoded_again.py`; those for GPTQ where every scale is to the byte the one
                        of rounding to nearest, which tells that this very tensor was rounded

Where config.json states GPTQ and the scales are others, errors within those limits decide nothing.

A block of rows is read from both at a time, on as many threads as there are processors. Where one
scale covers a matrix or several, the source's are read once more, before, for their largest
magnitude.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import TensorError, UnsupportedError
from convert.model_spec import read_json_object
from convert.tensor import SOURCE_DTYPES, TensorInfo
from verify.elements import Elements, measure_bits, measure_bounds
from verify.encoded_again import BlockErrors, Deviation, compare_block, sum_up
from verify.own_rounding import Rounding, needs_absmax, own_rounding
from verify.quantization import Role, read_quantization, role_of
from verify.source_rows import (
    NO_FACTORS,
    Factors,
    apart,
    blocks_of,
    read_rows,
    shared_absmax,
)
from verify.stored_matrix import StoredMatrix, open_matrix


@dataclass(frozen=True, slots=True)
class Compared:
    """One tensor. `elements` of a copy and of E4M3, `again` of what was encoded again.

    `own_scales` says of E4M3 that is out of bounds whether its scales are those of rounding to
    nearest; `rescaled` of any tensor that it holds scales of another, or gave some away;
    `undecided` that only GPTQ could explain its errors, and only config.json speaks of it.
    """

    name: str
    matrix: bool
    values: int
    elements: Elements | None = None
    again: Deviation | None = None
    own_scales: bool = False
    rescaled: bool = False
    undecided: bool = False

    @property
    def wrong(self) -> bool:
        """Whether it is not what storing the source's values can have left."""
        if self.again is not None:
            return self.own_scales or self.again.wrong
        out_of_bounds = self.elements is not None and self.elements.out_of_bounds > 0
        return out_of_bounds and not self.rescaled

    @property
    def same_bytes(self) -> bool:
        """Whether encoding it again gave the bytes that are stored."""
        return self.again is not None and self.again.same_bytes

    @property
    def ratio(self) -> float:
        """Error over the bound, or, where there is none, over that of our own encoding."""
        if self.elements is not None:
            return self.elements.ratio
        return self.again.ratio if self.again else 1.0

    @property
    def message(self) -> str:
        """What differs, and by how much."""
        found = [self.elements.message] if self.elements and self.elements.out_of_bounds else []
        if self.again is not None:
            taken_out = "without the scales of other tensors, " if self.rescaled else ""
            found.append(taken_out + self.again.message)
        return "; ".join(found)


class Folder:
    """Both checkpoints, opened, and the threads that compare them."""

    def __init__(self, source: Checkpoint, stored: Checkpoint, pool: ThreadPoolExecutor) -> None:
        self.source, self.stored, self.pool = source, stored, pool
        config = read_json_object(stored.path / "config.json")
        self.quantization = read_quantization(config)
        source.open_shards()
        stored.open_shards()

    def compare(self, name: str) -> Compared:
        """One tensor of the source beside what the folder stores of it.

        TensorError where that is missing or of another form than config.json says,
        UnsupportedError where it is of one that is not read here.
        """
        info = self.source.tensors[name]
        matrix = self.matrix(info)
        if matrix is None:
            return self._compare_bits(info)
        count = info.rows * info.columns
        if matrix.weight.dtype != "F8_E4M3" or matrix.scale.dtype not in SOURCE_DTYPES:
            return self._compare_errors(info, matrix)
        elements = measure_bounds(self.source, matrix, info, self.pool)
        if not elements.out_of_bounds:
            return Compared(name, True, count, elements)
        try:
            again = self.encode_again(info, matrix)
        except UnsupportedError:  # blocks of another size: nothing but the bounds is known of them
            return Compared(name, True, count, elements)
        own_scales = self._has_own_scales(info, matrix)
        if own_scales and matrix.group.actorder is not None:
            return Compared(name, True, count, elements, replace(again, made_up_for=True))
        return Compared(name, True, count, elements, again, own_scales)

    def _compare_errors(self, info: TensorInfo, matrix: StoredMatrix) -> Compared:
        again = self.encode_again(info, matrix)
        found = Compared(info.name, True, info.rows * info.columns, again=again)
        made_up = replace(again, made_up_for=True)
        if not again.wrong or made_up.wrong:
            return found
        if self._has_own_scales(info, matrix):
            return replace(found, again=made_up)
        return replace(found, undecided=matrix.group.actorder is not None)

    def matrix(self, info: TensorInfo) -> StoredMatrix | None:
        """The stored matrix of a tensor that config.json calls quantized; None for others."""
        module = info.name.removesuffix(".weight")
        group = self.quantization.group_of(module) if self.quantization else None
        if group is None or module == info.name or len(info.shape) != 2:
            return None
        plain = self.stored.tensors.get(info.name)
        if role_of(module) is Role.ROUTER and plain is not None and plain.dtype == info.dtype:
            return None  # engines compute it in 16 bits, whether or not the config ignores it
        return open_matrix(self.stored, module, group, (info.rows, info.columns))

    def encode_again(
        self, info: TensorInfo, matrix: StoredMatrix, factors: Factors = NO_FACTORS
    ) -> Deviation:
        """Errors of a stored matrix, and of our own encoding of the source times `factors`."""
        rounding = self._rounding(info, matrix, factors)
        look = partial(self._look, info, matrix, rounding, factors)
        return sum_up(info.name, self.pool.map(look, *apart(blocks_of(info, matrix.step))))

    def _rounding(self, info: TensorInfo, matrix: StoredMatrix, factors: Factors) -> Rounding:
        absmax = None
        if needs_absmax(matrix.group):
            absmax = shared_absmax(self.source, info, matrix.group, factors, self.pool)
        return own_rounding(matrix, info.dtype, absmax)

    def _look(
        self,
        info: TensorInfo,
        matrix: StoredMatrix,
        rounding: Rounding,
        factors: Factors,
        start: int,
        stop: int,
    ) -> BlockErrors:
        block = read_rows(self.source, info, factors, start, stop)
        ours, theirs = rounding(block), matrix.stored(start, stop)
        same = bool(ours.parts) and matrix.zero_points is None and matrix.order is None
        same = same and all(map(np.array_equal, ours.parts, theirs))
        their_values = matrix.values(start, stop)
        return compare_block(
            block.float32().astype(np.float64),
            their_values if same else ours.values(),
            their_values,
            same=same,
            row=start,
            by_column=factors.columns is not None,
        )

    def _compare_bits(self, info: TensorInfo) -> Compared:
        found = self.stored.tensors.get(info.name)
        if found is None or (found.dtype, found.shape) != (info.dtype, info.shape):
            what = f"{found.dtype} {list(found.shape)}" if found else "missing"
            raise TensorError(f"{info.name}: {what}; expected {info.dtype} {list(info.shape)}")
        elements = measure_bits(self.source, self.stored, info, self.pool)
        return Compared(info.name, False, elements.values, elements)

    def _has_own_scales(self, info: TensorInfo, matrix: StoredMatrix) -> bool:
        """Whether every scale is the one that rounding to nearest gives."""
        rounding = self._rounding(info, matrix, NO_FACTORS)

        def same(start: int, stop: int) -> bool:
            ours = rounding(self.source.read_rows(info, start, stop)).parts[1:]
            theirs = matrix.stored(start, stop)[1:]
            return bool(ours) and all(map(np.array_equal, ours, theirs))

        return all(self.pool.map(same, *apart(blocks_of(info, matrix.step))))
