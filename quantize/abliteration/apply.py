"""The verb `abliterate apply`: a chosen candidate becomes an EDIT folder.

In: the model, its measurement with a selection, the id of a candidate (default: the best sound
one). Out: EDIT (`edit_folder.py`), which `hermes-quant quantize --abliterate` takes. Nothing of the
model is changed here. Strengths may differ by layer; an embedding is left alone unless asked,
because in models with tied embeddings the head would be edited with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError, OutputError
from convert.job import tool_version
from convert.model import Model, open_model
from quantize.abliteration.candidates import ATTENTION, MLP, SINGLE, Candidate, make_candidates
from quantize.abliteration.edit_folder import (
    RECIPE_NAME,
    EditFolder,
    Recipe,
    TensorEdit,
    refuse_experts,
    write_edit,
)
from quantize.abliteration.measurement import Measurement, read_measurement
from quantize.abliteration.ranked import Ranked
from quantize.abliteration.selection import Selection, read_selection

_ROLES = {"attn_output": ATTENTION, "ffn_down": MLP}
_RANGE = re.compile(r"(\d+)(?:-(\d+))?=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Applied:
    """The edit that was written, and the candidate it is of."""

    edit: EditFolder
    chosen: Ranked


def apply(
    model: str,
    folder: Path,
    out: Path,
    *,
    candidate: str | None = None,
    keep_norms: bool = False,
    embeddings: bool = False,
    layer_strengths: Sequence[str] = (),
    force: bool = False,
) -> Applied:
    """Write the EDIT folder `out`. InputError where no candidate is sound and none is named."""
    if (out / RECIPE_NAME).exists() and not force:
        raise OutputError(f"{out / RECIPE_NAME}: exists; choose another --out or pass --force")
    found, selection = read_measurement(folder), read_selection(folder)
    if selection.measurement != found.fingerprint:
        raise InputError(f"{folder}: the selection is of another measurement; select again")
    row = _choose(selection, candidate, folder)
    by_layer = parse_strengths(layer_strengths, found.layers)
    with open_model(model) as opened:
        refuse_experts(opened)
        found.check_model(opened, folder)
        direction = _rebuild(found, row)
        lines, directions = _lines(opened, direction, by_layer, embeddings)
        recipe = Recipe(
            keep_norms=keep_norms,
            edits=lines,
            provenance=_provenance(opened, found, selection, row),
        )
    edit = EditFolder(recipe, directions)
    write_edit(out, edit)
    return Applied(edit, row)


def _choose(selection: Selection, wanted: str | None, folder: Path) -> Ranked:
    if wanted is None:
        if selection.best is None:
            raise InputError(
                f"{folder}: no candidate is sound; selection.json says why, and --candidate ID"
                " applies one all the same"
            )
        return selection.best
    row = next((r for r in selection.ranked if r.id == wanted), None)
    if row is None:
        raise InputError(f"{folder}: no candidate {wanted!r}; selection.json lists them by id")
    if row.bypass is None:
        raise InputError(f"{folder}: candidate {wanted!r} cannot be applied: {row.why}")
    return row


def _rebuild(found: Measurement, row: Ranked) -> Candidate:
    """The candidate that a row of the ranking stands for."""
    candidates = make_candidates(
        found, strengths=(row.strength,), variant=row.variant, projected=row.projected
    )
    return next(c for c in candidates if c.id == row.id)


def _lines(
    model: Model, chosen: Candidate, by_layer: Mapping[int, float], embeddings: bool
) -> tuple[tuple[TensorEdit, ...], dict[str, Any]]:
    """Every tensor that is edited, and the directions by name; equal ones are stored once."""
    lines: list[TensorEdit] = []
    directions: dict[str, Any] = {}
    for tensor in model.tensors:
        if tensor.rule.role not in _ROLES or tensor.layer is None or len(tensor.info.shape) != 2:
            continue
        strength = by_layer.get(tensor.layer, chosen.strength)
        block = _ROLES[tensor.rule.role]
        name = "direction" if chosen.kind == SINGLE else f"layers.{tensor.layer}.{block}"
        if strength:
            directions[name] = chosen.directions[tensor.layer, block]
            lines.append(TensorEdit(tensor=tensor.info.name, direction=name, strength=strength))
    if embeddings:
        if chosen.kind != SINGLE:
            raise InputError(
                f"--embeddings: candidate {chosen.id!r} has a direction for each layer and none"
                " for the embedding; choose a single one"
            )
        name = next(t.info.name for t in model.tensors if t.rule.role == "token_embd")
        strength = min(chosen.strength, 1.0)
        lines.append(TensorEdit(tensor=name, direction="direction", strength=strength))
    if not lines:
        raise InputError("--layer-strength: every layer has strength 0; nothing would be edited")
    return tuple(lines), directions


def _provenance(
    model: Model, found: Measurement, selection: Selection, row: Ranked
) -> dict[str, Any]:
    """Where the directions come from; no local path, no prompt."""
    baseline = {k: v for k, v in asdict(found.baseline).items() if k != "first_tokens"}
    return {
        "tool": tool_version(),
        "source": model.source(),
        "prompt_sets_sha256": found.prompts.sha256,
        "positions": list(found.prompts.positions),
        "contrast": found.contrast,
        "measurement": found.fingerprint,
        "baseline": {**baseline, "rate": found.baseline.rate},
        "candidate": asdict(row),
        "score_before": selection.refused_score,
    }


def parse_strengths(texts: Sequence[str], layers: int) -> dict[int, float]:
    """`10-20=0.5` or `3=0`, later ones over earlier ones; by layer."""
    found: dict[int, float] = {}
    for text in texts:
        match = _RANGE.fullmatch(text)
        if match is None or match[3].count(".") > 1 or match[3] == ".":
            raise InputError(f"--layer-strength {text!r}: expected FIRST-LAST=S, as in 10-20=0.5")
        first, last = int(match[1]), int(match[2] or match[1])
        strength = float(match[3])
        if not first <= last < layers or strength > 4:
            raise InputError(
                f"--layer-strength {text!r}: the model has layers 0 to {layers - 1}, and strengths"
                " go up to 4"
            )
        found |= dict.fromkeys(range(first, last + 1), strength)
    return found
