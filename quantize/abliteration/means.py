"""Which prompts speak for a class, and the means of the stream over them.

A prompt counts only if it did what its class says: of the prompts that should be refused those that
were, of the harmless ones those that were not, and as "complied" the refused set's own exceptions.
Of either kind, those kept for choosing enter no mean.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from convert.workers import Steps
from quantize.abliteration.machine import Machine
from quantize.abliteration.measurement import COMPLIED, Measurement
from quantize.abliteration.prompts import HARMLESS, PLAIN, REFUSED, TOOLS, Prompt

if TYPE_CHECKING:
    from quantize.activations.saved import Progress

LEAST_PROMPTS = 8
"""Prompts of each class without which a mean says nothing."""


def members_of(found: Measurement, variant: str, kind: str, *, validation: bool) -> tuple[int, ...]:
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


def take_means(
    found: Measurement,
    folder: Path,
    machine: Machine,
    progress: Progress,
    on_progress: Steps | None,
) -> Measurement:
    """Means of every class of every variant that has enough prompts, from one pass."""
    from quantize.activations.residuals import residual_sums

    variants = dict.fromkeys(p.variant for p in found.prompts.prompts)
    groups = {
        (variant, kind): members_of(found, variant, kind, validation=False)
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
        progress=progress,
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
    refused = [prompts[i] for i in members_of(found, PLAIN, REFUSED, validation=True)]
    harmless = [prompts[i] for i in members_of(found, PLAIN, HARMLESS, validation=True)]
    with_tools = [p for p in prompts if (p.kind, p.variant) == (HARMLESS, TOOLS)]
    return refused, harmless, [p for p in with_tools if p.validation]
