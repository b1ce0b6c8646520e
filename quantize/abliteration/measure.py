"""The verb `abliterate measure`: does the model refuse, and where in its stream does that show?

In: a 16-bit checkpoint, prompts it should refuse and prompts it should not. Out: a measurement
folder. The baseline comes first: the model answers the first words of every plain prompt, and a
model that refuses fewer than `least_rate` of those it should refuse has nothing to remove; the
published Hermes 3 8B refuses 28 %. Editing it would only damage it.

Means are then taken over the prompts that did what they are for: those that were refused, and those
that were not. With the contrast "complied" both come from the refused set, which tells refusing
from being about something harmful. A run that is stopped after the baseline goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from convert.errors import InputError
from convert.model import Model, open_model
from convert.rendering import Tokenizer, stop_ids
from convert.workers import Steps
from quantize.abliteration.edit_folder import refuse_experts, writing
from quantize.abliteration.measurement import (
    COMPLIED,
    CONTRASTS,
    Baseline,
    Measurement,
    read_measurement,
    write_measurement,
)
from quantize.abliteration.prompts import (
    HARMLESS,
    PLAIN,
    REFUSED,
    TOOLS,
    Prompt,
    PromptSet,
    read_prompts,
)
from quantize.abliteration.refusals import looks_like_refusal, refusal_scores

LEAST_RATE = 0.5
REPLY_TOKENS = 12
LEAST_PROMPTS = 8
"""Prompts of each class without which a mean says nothing."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and in what numbers the model is computed."""

    device: str = "cpu"
    dtype: str = "float32"


ON_CPU = Machine()


@dataclass(frozen=True, slots=True)
class Measured:
    """A measurement, and why there is nothing to remove, if so: then it has no means."""

    measurement: Measurement
    nothing: str | None = None


def measure(
    model: str,
    refused: Path,
    harmless: Path,
    out: Path,
    *,
    tools: Path | None = None,
    contrast: str = HARMLESS,
    least_rate: float = LEAST_RATE,
    machine: Machine = ON_CPU,
    on_progress: Steps | None = None,
) -> Measured:
    """Measure `model` (folder or hub id) into the folder `out`; what is there already is kept."""
    if contrast not in CONTRASTS:
        raise InputError(f"--contrast {contrast!r}: expected one of {', '.join(CONTRASTS)}")
    with open_model(model) as opened:
        refuse_experts(opened)
        folder = opened.checkpoint.path
        tokenizer = Tokenizer.open(folder)
        prompts = read_prompts(tokenizer, refused, harmless, tools)
        if not prompts.of(kind=REFUSED, variant=PLAIN):
            raise InputError(f"{refused}: every prompt brings tools; some without are needed")
        fingerprint = _fingerprint(opened, prompts, contrast, machine)
        found = _finished(out, fingerprint)
        if found is None:
            with writing(out):  # now, not after the model has run
                pass
            asked = _ask(opened, tokenizer, prompts, machine, on_progress)
            layers = opened.checkpoint.spec.num_hidden_layers
            found = Measurement(fingerprint, contrast, layers, *asked, {})
            write_measurement(out, found)
        tokenizer.close()
        nothing = _nothing_to_remove(found, least_rate)
        if nothing is None and not found.arrays:
            found = _with_means(found, folder, machine, on_progress)
            write_measurement(out, found)
    return Measured(found, nothing)


def _fingerprint(model: Model, prompts: PromptSet, contrast: str, machine: Machine) -> str:
    parts = (model.checkpoint.fingerprint(), prompts.sha256, contrast, machine, REPLY_TOKENS)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _finished(out: Path, fingerprint: str) -> Measurement | None:
    """What an earlier run left, if it was of the same model and prompts."""
    try:
        found = read_measurement(out)
    except InputError:
        return None
    if found.fingerprint != fingerprint:
        raise InputError(
            f"{out}: holds a measurement of another model, other prompts or options; choose another"
            " --out"
        )
    return found


def _ask(
    model: Model,
    tokenizer: Tokenizer,
    prompts: PromptSet,
    machine: Machine,
    on_progress: Steps | None,
) -> tuple[PromptSet, Baseline]:
    """The first words the model replies to every prompt, and how often they refuse."""
    from quantize.activations.residuals import NOTHING, greedy_replies, steered_logits

    folder = model.checkpoint.path
    ids = [p.ids for p in prompts.prompts]
    device, dtype = machine.device, machine.dtype
    stops = stop_ids(model.checkpoint, tokenizer)
    replies = greedy_replies(
        folder, ids, REPLY_TOKENS, stops, device=device, dtype=dtype, on_progress=on_progress
    )
    refuses = [looks_like_refusal(_text(tokenizer, reply)) for reply in replies]
    answered = tuple(replace(p, refuses=r) for p, r in zip(prompts.prompts, refuses, strict=True))
    of = {kind: [i for i, p in enumerate(answered) if _is(p, kind)] for kind in (REFUSED, HARMLESS)}
    first = sorted({replies[i][0] for i in of[REFUSED] if refuses[i]})
    by_score = 0
    if first:
        texts = [ids[i] for i in of[REFUSED]]
        (found,) = steered_logits(folder, [(texts, NOTHING)], device=device, dtype=dtype)
        by_score = int((refusal_scores(found, first) > 0).sum())
    baseline = Baseline(
        refused=sum(refuses[i] for i in of[REFUSED]),
        refused_by_score=by_score,
        prompts=len(of[REFUSED]),
        harmless_refused=sum(refuses[i] for i in of[HARMLESS]),
        harmless_prompts=len(of[HARMLESS]),
        first_tokens=tuple(first),
    )
    return replace(prompts, prompts=answered), baseline


def _is(prompt: Prompt, kind: str) -> bool:
    return prompt.kind == kind and prompt.variant == PLAIN


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids)


def _nothing_to_remove(found: Measurement, least_rate: float) -> str | None:
    baseline = found.baseline
    if baseline.rate < least_rate:
        return (
            f"nothing to remove: {baseline.refused} of {baseline.prompts} prompts are refused"
            f" ({100 * baseline.rate:.0f} %), fewer than {100 * least_rate:.0f} %"
        )
    for kind in (REFUSED, found.contrast):
        count = len(_members(found, PLAIN, kind, validation=False))
        if count < LEAST_PROMPTS:
            return (
                f"not enough to measure: {count} prompts are {kind} outside those kept for"
                f" choosing; at least {LEAST_PROMPTS} are needed"
            )
    return None


def _members(found: Measurement, variant: str, kind: str, *, validation: bool) -> tuple[int, ...]:
    """Indices of the prompts of a class that did what the class says."""
    source, refuses = {
        REFUSED: (REFUSED, True),
        HARMLESS: (HARMLESS, False),
        COMPLIED: (REFUSED, False),
    }[kind]
    return tuple(
        i
        for i, p in enumerate(found.prompts.prompts)
        if (p.kind, p.variant, p.validation, p.refuses) == (source, variant, validation, refuses)
    )


def _with_means(
    found: Measurement, folder: Path, machine: Machine, on_progress: Steps | None
) -> Measurement:
    """Means of every class of every variant that has enough prompts, from one pass."""
    from quantize.activations.residuals import residual_sums

    variants = dict.fromkeys(p.variant for p in found.prompts.prompts)
    groups = {
        (variant, kind): _members(found, variant, kind, validation=False)
        for variant in variants
        for kind in (REFUSED, found.contrast)
    }
    thin = {variant for (variant, _), members in groups.items() if len(members) < LEAST_PROMPTS}
    groups = {key: members for key, members in groups.items() if key[0] not in thin}
    order = [(i, number) for number, members in enumerate(groups.values()) for i in members]
    sums = residual_sums(
        folder,
        [found.prompts.prompts[i].ids for i, _ in order],
        [number for _, number in order],
        len(found.prompts.positions),
        found.layers,
        device=machine.device,
        dtype=machine.dtype,
        on_progress=on_progress,
    )
    arrays: dict[str, np.ndarray] = {}
    for number, ((variant, kind), members) in enumerate(groups.items()):
        arrays[f"{variant}.{kind}"] = sums.total[number] / len(members)
        arrays[f"{variant}.{kind}.squares"] = sums.squares[number] / len(members)
    return replace(found, arrays=arrays)


def validation_prompts(
    found: Measurement,
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Prompts kept for choosing: plain refused ones, plain harmless ones, harmless with tools."""
    prompts = found.prompts.prompts
    refused = [prompts[i] for i in _members(found, PLAIN, REFUSED, validation=True)]
    harmless = [prompts[i] for i in _members(found, PLAIN, HARMLESS, validation=True)]
    with_tools = [p for p in prompts if (p.kind, p.variant) == (HARMLESS, TOOLS)]
    return refused, harmless, [p for p in with_tools if p.validation]
