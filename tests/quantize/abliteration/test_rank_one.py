"""The edit of one matrix: exact where it says so, and the same bytes however it is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from convert.tensor import Block, round_to
from quantize.abliteration.rank_one import EmbeddingEdit, RankOneEdit
from tests.quantize.abliteration.edits import unit

ROWS, COLUMNS = 256, 96
R = unit(ROWS, 1)


def weight(dtype: str = "F32", columns: int = COLUMNS) -> Block:
    values = np.random.default_rng(2).standard_normal((ROWS, columns)).astype(np.float32)
    return Block("w", dtype, 0, round_to(values * np.float32(0.02), dtype))


def edited(edit: RankOneEdit | EmbeddingEdit, block: Block) -> np.ndarray:
    return edit.apply(block, edit.reduce(None, block)).float32()


def left(w: np.ndarray, changed: np.ndarray) -> float:
    """Share of r^T W that an edit left."""
    r = R.astype(np.float64)
    return float(np.linalg.norm(r @ changed) / np.linalg.norm(r @ w))


def test_it_is_what_the_formula_gives_in_float64() -> None:
    block = weight()
    w, r = torch.from_numpy(block.float32()).double(), torch.from_numpy(R).double()
    for strength in (0.5, 1.0, 1.5):
        wanted = w - strength * torch.outer(r, r @ w)
        np.testing.assert_allclose(edited(RankOneEdit(R, strength), block), wanted, atol=2e-8)


# Rounding moves a value by at most half an epsilon, uniformly: 0.29 epsilon in the mean square.
@pytest.mark.parametrize(
    ("dtype", "bound"), [("F32", 1e-6), ("F16", 0.29 * 2**-10), ("BF16", 0.29 * 2**-7)]
)
@pytest.mark.parametrize("keep_norms", [False, True])
def test_only_rounding_is_left_of_the_direction(dtype: str, bound: float, keep_norms: bool) -> None:
    block = weight(dtype, 1024)
    assert left(block.float32(), edited(RankOneEdit(R, 1.0, keep_norms), block)) < bound


def test_norms_of_columns_are_kept_and_rescaling_rows_would_bring_the_direction_back() -> None:
    block = weight()
    w = block.float32()
    for strength in (0.5, 1.0, 1.7):
        changed = edited(RankOneEdit(R, strength, keep_norms=True), block)
        kept = np.linalg.norm(w, axis=0)
        np.testing.assert_allclose(np.linalg.norm(changed, axis=0), kept, rtol=1e-5)
    w = w + np.outer(R, 0.2 * w[0] / np.abs(w[0])).astype(np.float32)
    plain = edited(RankOneEdit(R, 1.0), Block("w", "F32", 0, w))
    rows = plain * np.linalg.norm(w, axis=1, keepdims=True)
    rows /= np.linalg.norm(plain, axis=1, keepdims=True)
    assert left(w, rows) > 0.05, "the row-norm trap: the direction is partly back"


def test_a_column_that_is_the_direction_is_emptied_not_blown_up() -> None:
    block = Block("w", "F32", 0, np.ascontiguousarray(np.outer(R, [3.0, 0.0]).astype(np.float32)))
    changed = edited(RankOneEdit(R, 1.0, keep_norms=True), block)
    assert np.abs(changed).max() < 1e-6


@pytest.mark.parametrize("cut", [1, 7, 255])
def test_the_sums_do_not_depend_on_how_the_rows_are_cut(cut: int) -> None:
    block, edit = weight("BF16"), RankOneEdit(R, 1.0, keep_norms=True)
    whole = edit.reduce(None, block)
    first = edit.reduce(None, Block("w", "BF16", 0, block.raw[:cut]))
    parts = edit.reduce(first, Block("w", "BF16", cut, block.raw[cut:]))
    assert whole.along.tobytes() == parts.along.tobytes()
    assert whole.squares.tobytes() == parts.squares.tobytes()
    late = edit.apply(Block("w", "BF16", cut, block.raw[cut:]), whole)
    assert late.raw.tobytes() == edit.apply(block, whole).raw[cut:].tobytes()


@pytest.mark.parametrize("keep_norms", [False, True])
def test_an_embedding_loses_the_direction_in_every_row(keep_norms: bool) -> None:
    block = Block("e", "F32", 0, np.ascontiguousarray(weight().float32().T))
    changed = edited(EmbeddingEdit(R, 1.0, keep_norms), block)
    assert np.abs(changed @ R).max() < 1e-6
    if keep_norms:
        kept = np.linalg.norm(block.float32(), axis=1)
        np.testing.assert_allclose(np.linalg.norm(changed, axis=1), kept, rtol=1e-5)


def test_the_record_tells_a_half_edit_from_a_whole_one() -> None:
    block = weight("BF16", 1024)
    for strength, expected in ((1.0, 0.0), (0.5, 0.5), (1.5, 0.5)):
        edit = RankOneEdit(R, strength)
        before = edit.reduce(None, block)
        record = edit.describe(before, edit.reduce(None, edit.apply(block, before)))
        assert record["left_along_direction"] == pytest.approx(expected, abs=3e-3)
        assert record["share_along_direction"] == pytest.approx(1 / 16, rel=0.2)


def test_another_direction_strength_or_form_is_another_edit() -> None:
    edits = [
        RankOneEdit(R, 1.0),
        RankOneEdit(R, 1.5),
        RankOneEdit(R, 1.0, keep_norms=True),
        RankOneEdit(-R, 1.0),
        EmbeddingEdit(R, 1.0),
    ]
    assert len({edit.digest for edit in edits}) == len(edits)
