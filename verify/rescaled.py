"""Scales that were moved between layers before rounding (AWQ, SmoothQuant), taken out again.

Such methods divide a norm's weights by s, and multiply the columns of the matrices that it feeds by
s; likewise rows of v_proj and columns of o_proj, rows of up_proj and columns of down_proj. The
model computes the same, but no tensor holds the source's values any more: only products do. So
where a layer's tensors are not the source's, this is tried before they are called wrong:

    norm -> q, k, v; gate, up   s is the source's norm over the stored one
    v -> o; up -> down          s of a row by least squares of the stored row on the source's (times
                                the norm's s), which noise of rounding moves by its relative error
                                over the root of the columns; the other matrix must hold 1 / s

and the matrices are compared with the source's times s. A norm is explained only where one of the
matrices that it alone feeds is nearer to the source with s than without, and within its limits; a
pair, where the second matrix is within its limits with s, or nearer by more than those. A row of v
or up that was damaged alone fits its own s, and is found as a column of the matrix after it. v and
o are a pair only where each head has values of its own. Of a mixture of experts nothing is
explained: what differs is left out, and said.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from convert.families import family_of
from convert.tensor import TensorInfo, to_float32
from verify.encoded_again import WHOLE_LIMIT
from verify.folder_weights import Compared, Folder
from verify.source_rows import Factors, Float64, apart, blocks_of, read_rows

_LEAST_FACTOR = 1e-6
Layer = Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class _Half:
    """Half a layer: a norm, the matrices it alone feeds, and the pair that it feeds first."""

    norm: str
    fed: tuple[str, ...]
    first: str
    second: str


_HALVES = (
    _Half("attn_norm", ("attn_q", "attn_k"), "attn_v", "attn_output"),
    _Half("ffn_norm", ("ffn_gate",), "ffn_up", "ffn_down"),
)


def explain(
    folder: Folder, compared: Mapping[str, Compared]
) -> tuple[dict[str, Compared], tuple[str, ...]]:
    """What is otherwise compared: tensors by name; and the names that cannot be compared."""
    found: dict[str, Compared] = {}
    left_out: list[str] = []
    for layer in _layers(folder).values():
        wrong = [info.name for info in layer.values() if _is_wrong(compared, info)]
        if folder.source.spec.num_experts:
            norms = [half.norm for half in _HALVES if _is_wrong(compared, layer.get(half.norm))]
            left_out += wrong if norms else ()
        elif wrong:
            for half in _HALVES:
                if all(key in layer for key in (half.norm, *half.fed, half.first, half.second)):
                    found |= _explain_half(folder, half, layer, compared)
    return found, tuple(left_out)


def _is_wrong(compared: Mapping[str, Compared], info: TensorInfo | None) -> bool:
    return info is not None and info.name in compared and compared[info.name].wrong


def _layers(folder: Folder) -> dict[int, dict[str, TensorInfo]]:
    """The tensors of each layer by their role in GGUF's words; of experts, by their name."""
    spec = folder.source.spec
    layers: dict[int, dict[str, TensorInfo]] = defaultdict(dict)
    for tensor in family_of(spec).recognise(spec, folder.source.tensors):
        if tensor.layer is not None and tensor.gguf_name is not None:
            role = tensor.info.name
            if tensor.expert is None and tensor.gguf_name.endswith(".weight"):
                role = tensor.gguf_name.split(".")[2]
            layers[tensor.layer][role] = tensor.info
    return layers


def _explain_half(
    folder: Folder, half: _Half, layer: Layer, compared: Mapping[str, Compared]
) -> Iterator[tuple[str, Compared]]:
    """The tensors of half a layer that hold the source's values but for scales."""
    columns = None
    norm, first, second = layer[half.norm], layer[half.first], layer[half.second]
    if _is_wrong(compared, norm):
        columns = _norm_factors(folder, norm)
        fed = [
            again
            for key in half.fed
            if (again := _again(folder, layer[key], Factors(columns=columns), compared))
        ]
        nearer = [again for again in fed if _error(again) < _error(compared[again.name])]
        if any(not again.wrong for again in nearer):
            yield norm.name, replace(compared[norm.name], rescaled=True)
            yield from ((again.name, again) for again in nearer)
        else:
            columns = None
    rows = None
    if _is_wrong(compared, second) and second.columns == first.rows:
        rows = _row_factors(folder, first, columns) if first.name in compared else None
        inverse = Factors(columns=1 / rows if rows is not None else None)
        again = _again(folder, second, inverse, compared)
        if again is not None and _is_explained(again, compared[second.name]):
            yield second.name, again
        else:
            rows = None
    again = _again(folder, first, Factors(rows, columns), compared)
    if again is not None:
        yield first.name, again


def _again(
    folder: Folder, info: TensorInfo, factors: Factors, compared: Mapping[str, Compared]
) -> Compared | None:
    """A matrix beside the source's times factors; None for what is no quantized matrix."""
    matrix = folder.matrix(info) if factors and info.name in compared else None
    if matrix is None:
        return None
    again = folder.encode_again(info, matrix, factors)
    plain = compared[info.name]
    return Compared(info.name, True, plain.values, again=again, rescaled=True)


def _is_explained(again: Compared, plain: Compared) -> bool:
    """Whether a matrix that was wrong is right now, or so much nearer that only damage is left."""
    return not again.wrong or _error(again) * WHOLE_LIMIT < _error(plain)


def _error(compared: Compared) -> float:
    """Over that of our own encoding, where it was encoded again."""
    return compared.again.ratio if compared.again is not None else compared.ratio


def _norm_factors(folder: Folder, info: TensorInfo) -> Float64:
    """The source's over the stored, 1 where that is no number."""
    pair = []
    for checkpoint in (folder.source, folder.stored):
        there = checkpoint.tensors[info.name]
        raw = checkpoint.read_rows(there, 0, there.rows).raw.reshape(-1)
        pair.append(to_float32(raw, there.dtype).astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = pair[0] / pair[1]
    return np.where(np.isfinite(factors) & (factors > _LEAST_FACTOR), factors, 1.0)


def _row_factors(folder: Folder, info: TensorInfo, columns: Float64 | None) -> Float64 | None:
    """What the rows of a stored matrix were multiplied by; None for no quantized matrix."""
    matrix = folder.matrix(info)
    if matrix is None:
        return None
    fed = Factors(columns=columns)

    def look(start: int, stop: int) -> Float64:
        x = read_rows(folder.source, info, fed, start, stop).float32().astype(np.float64)
        y = matrix.values(start, stop)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            fitted: Float64 = (x * y).sum(axis=1) / np.square(x).sum(axis=1)
        return fitted

    factors = np.concatenate([*folder.pool.map(look, *apart(blocks_of(info, matrix.step)))])
    return np.where(np.isfinite(factors) & (factors > _LEAST_FACTOR), factors, 1.0)
