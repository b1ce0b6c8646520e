"""The verb `abliterate select`: what does the model do without each candidate direction?

In: the model and its measurement. Out: `selection.json`, every candidate with its numbers, best
first, and of the best the stream along its direction (`projection.py`). On the prompts that the
measurement kept for choosing:

    bypass   mean refusal score of prompts that were refused, without the direction: low is good
    induce   how much the mean score of harmless prompts rises when the difference is added
    kl       mean KL divergence of the first token on harmless prompts, without the direction
    kl_tools the same on harmless prompts that have tools, if there are any: a call that is no
             longer made shows here and nowhere else

A candidate is sound if neither KL is above 0.1, induce > 0 and, for a single direction, its layer
lies before 0.8 of the depth (Arditi et al.'s filters, induce as a gain and not as an absolute
score). The order is: sound ones first, then by bypass. Nothing is thrown away: the table says why a
candidate is not sound, and a person may apply it all the same. Random directions are in the same
table; they tell what an edit of that size does by itself, and are never chosen.

Candidates run side by side, as many in one pass over the checkpoint as STATES_BYTES allows; a run
that is killed goes on after the last pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import InputError
from convert.model import open_model
from convert.staging import write_whole
from convert.workers import Steps
from quantize.abliteration.candidates import Candidate, make_candidates
from quantize.abliteration.edit_folder import writing
from quantize.abliteration.machine import ON_CPU, Machine
from quantize.abliteration.means import validation_prompts
from quantize.abliteration.measurement import Measurement, read_measurement
from quantize.abliteration.projection import Projection, measure_projection
from quantize.abliteration.prompts import PLAIN
from quantize.abliteration.ranked import Ranked, rank
from quantize.abliteration.refusals import refusal_scores

NAME = "selection.json"
SCHEMA_VERSION = 2
STRENGTHS = (1.0, 1.5)
STATES_BYTES = 2 << 30
_UNFINISHED = "selection.unfinished.json"
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Selection:
    """All candidates, best first; scores of the model as it is; prompts they were scored on.

    `projection` is of the best sound candidate.
    """

    measurement: str
    refused_score: float
    harmless_score: float
    prompts: tuple[int, int]
    ranked: tuple[Ranked, ...]
    projection: Projection | None = None

    @property
    def best(self) -> Ranked | None:
        """The first sound candidate that is no control."""
        return next((r for r in self.ranked if r.sound), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def select(
    model: str,
    folder: Path,
    *,
    strengths: Sequence[float] = STRENGTHS,
    variant: str = PLAIN,
    projected: bool = False,
    machine: Machine = ON_CPU,
    on_progress: Steps | None = None,
) -> Selection:
    """Score every candidate of the measurement in `folder` and write the ranking beside it."""
    found = read_measurement(folder)
    if not found.arrays:
        raise InputError(f"{folder}: has a baseline and no means; abliterate measure says why")
    if variant not in found.variants:
        known = ", ".join(found.variants)
        raise InputError(f"{folder}: variant {variant!r} was not measured; there is {known}")
    if not strengths or not all(0 < s <= 4 for s in strengths):
        raise InputError("--strength: expected numbers above 0 and at most 4")
    candidates = make_candidates(found, strengths=strengths, variant=variant, projected=projected)
    with open_model(model) as opened:
        found.check_model(opened, folder)
        place = opened.checkpoint.path
    unfinished = folder / _UNFINISHED
    selection = _score(place, found, candidates, machine, unfinished, on_progress)
    if selection.best is not None:
        best = next(c for c in candidates if c.id == selection.best.id)
        seen = measure_projection(place, found, best, machine, on_progress)
        selection = replace(selection, projection=seen)
    with writing(folder):
        write_whole(folder / NAME, _text(selection.to_dict()))
        unfinished.unlink(missing_ok=True)
    return selection


def _text(content: dict[str, Any]) -> bytes:
    return f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode()


def read_selection(folder: Path) -> Selection:
    """What `select` wrote."""
    path = folder / NAME
    try:
        data = json.loads(path.read_bytes())
        if data.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema_version")
        data["ranked"] = tuple(Ranked(**row) for row in data["ranked"])
        data["prompts"] = tuple(data["prompts"])
        if data["projection"] is not None:
            data["projection"] = Projection(**data["projection"])
        return Selection(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: not a selection this version reads ({error}); run abliterate select"
        ) from error


def _kept(path: Path, key: str) -> list[Ranked]:
    """Candidates that an earlier run had scored before it was stopped."""
    try:
        data = json.loads(path.read_bytes())
        return [Ranked(**row) for row in data["ranked"]] if data["key"] == key else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _score(
    place: Path,
    found: Measurement,
    candidates: Sequence[Candidate],
    machine: Machine,
    unfinished: Path,
    on_progress: Steps | None,
) -> Selection:
    from quantize.activations.steering import NOTHING, Steering, steered_logits

    refused, harmless, tools = ([p.ids for p in part] for part in validation_prompts(found))
    if not refused or not harmless:
        raise InputError("no prompts are kept for choosing; measure with more of each kind")
    first = found.baseline.first_tokens
    device, dtype = machine.device, machine.dtype
    asked = [(refused, NOTHING), (harmless, NOTHING), *([(tools, NOTHING)] if tools else [])]
    base_refused, base, *rest = steered_logits(place, asked, device=device, dtype=dtype)
    refused_score = float(refusal_scores(base_refused, first).mean())
    harmless_score = float(refusal_scores(base, first).mean())
    if not (math.isfinite(refused_score) and math.isfinite(harmless_score)):
        raise InputError(
            f"{place}: gives no finite probabilities as it is, computed in {dtype}; use"
            " --dtype float32"
        )
    key = f"{found.fingerprint} {place.resolve().name} {device} {dtype}"
    ids = {c.id for c in candidates if c.directions}
    scored = [row for row in _kept(unfinished, key) if row.id in ids]
    done = {row.id for row in scored}
    usable = [c for c in candidates if c.directions and c.id not in done]
    for group in _groups(usable, found, [*refused, *harmless, *harmless, *tools]):
        jobs = []
        for candidate in group:
            without = Steering(
                {k: (d, candidate.strength) for k, d in candidate.directions.items()}
            )
            jobs += [(refused, without), (harmless, without)]
            jobs += [(harmless, Steering(added=(candidate.layer, candidate.raw)))]
            jobs += [(tools, without)] if tools else []
        logits = steered_logits(place, jobs, device=device, dtype=dtype, on_progress=on_progress)
        for candidate in group:
            scores = refusal_scores(next(logits), first)
            numbers = [_kl(base, next(logits))]
            numbers += [float(refusal_scores(next(logits), first).mean() - harmless_score)]
            numbers += [_kl(one, next(logits)) for one in rest]
            scored.append(rank(candidate, found.layers, scores, numbers))
        with writing(unfinished.parent):
            write_whole(unfinished, _text({"key": key, "ranked": [asdict(r) for r in scored]}))
    ranked = [rank(c, found.layers, None, []) for c in candidates if not c.directions] + scored
    ranked.sort(key=lambda r: (not r.sound, math.inf if r.bypass is None else r.bypass))
    prompts = len(refused), len(harmless)
    return Selection(found.fingerprint, refused_score, harmless_score, prompts, tuple(ranked))


def _kl(base: Float64, other: Float64) -> float:
    """Mean KL divergence of (N, V) log-probabilities."""
    return float((np.exp(base) * (base - other)).sum(axis=1).mean())


def _groups(
    candidates: Sequence[Candidate], found: Measurement, prompts: Sequence[Sequence[int]]
) -> Iterator[Sequence[Candidate]]:
    """Candidates whose hidden states fit into STATES_BYTES together."""
    hidden = next(iter(found.arrays.values())).shape[-1]
    at_once = max(1, STATES_BYTES // (4 * hidden * sum(map(len, prompts))))
    for start in range(0, len(candidates), at_once):
        yield candidates[start : start + at_once]
