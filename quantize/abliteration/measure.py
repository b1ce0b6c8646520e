"""The verb `abliterate measure`: does the model refuse, and where in its stream does that show?

In: a 16-bit checkpoint, prompts it should refuse and prompts it should not. Out: a measurement
folder. The baseline comes first: the model answers the first words of every plain prompt, and a
model that refuses fewer than `least_rate` of those it should refuse has nothing to remove; the
published Hermes 3 8B refuses 28 %. Editing it would only damage it.

Means are then taken over the prompts that did what they are for: those that were refused, and those
that were not. With the contrast "complied" both come from the refused set, which tells refusing
from being about something harmful.

A run that is killed goes on after the last layer that was kept, whatever it was at. What is left of
a run on another model, other prompts or other options is thrown away, and a line says which of them
changed; a measurement that is complete is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError
from convert.model import Model, open_model
from convert.rendering import Tokenizer
from convert.staging import staging_folder
from convert.terminal import warn
from convert.workers import Steps
from quantize.abliteration.baseline import REPLY_TOKENS, ask_baseline
from quantize.abliteration.edit_folder import refuse_experts
from quantize.abliteration.machine import ON_CPU, Machine
from quantize.abliteration.means import LEAST_PROMPTS, members_of, take_means
from quantize.abliteration.measurement import (
    CONTRASTS,
    Measurement,
    read_measurement,
    write_measurement,
)
from quantize.abliteration.prompts import HARMLESS, PLAIN, REFUSED, PromptSet, read_prompts

_PROGRESS = "progress.npz"
LEAST_RATE = 0.5


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
        tokenizer = Tokenizer.open(opened.checkpoint.path)
        prompts = read_prompts(tokenizer, refused, harmless, tools)
        if not prompts.of(kind=REFUSED, variant=PLAIN):
            raise InputError(f"{refused}: every prompt brings tools; some without are needed")
        made_of = _made_of(opened, prompts, contrast, machine)
        found, nothing = _go_on(
            opened, tokenizer, prompts, out, made_of, least_rate, machine, on_progress
        )
        tokenizer.close()
    return Measured(found, nothing)


def _go_on(
    model: Model,
    tokenizer: Tokenizer,
    prompts: PromptSet,
    out: Path,
    made_of: Mapping[str, str],
    least_rate: float,
    machine: Machine,
    on_progress: Steps | None,
) -> tuple[Measurement, str | None]:
    """Baseline and means, from wherever an earlier run stopped."""
    from quantize.activations.saved import Progress

    with staging_folder(out) as staging:
        path = staging / _PROGRESS
        found = _left_over(out, path, made_of)
        if found is None:
            progress = Progress(path, _key(made_of, "replies"))
            asked = ask_baseline(model, tokenizer, prompts, machine, progress, on_progress)
            layers = model.checkpoint.spec.num_hidden_layers
            found = Measurement(made_of, made_of["contrast"], layers, *asked, {})
            write_measurement(out, found)
        nothing = _nothing_to_remove(found, least_rate)
        if nothing is None and not found.arrays:
            progress = Progress(path, _key(made_of, "means"))
            folder = model.checkpoint.path
            found = take_means(found, folder, machine, progress, on_progress)
            write_measurement(out, found)
        path.unlink(missing_ok=True)
    return found, nothing


def _made_of(model: Model, prompts: PromptSet, contrast: str, machine: Machine) -> dict[str, str]:
    """All that a measurement depends on, by what a person calls it."""
    return {
        "model": model.checkpoint.fingerprint(),
        **{
            f"{name} file" if name != "templates" else name: d for name, d in prompts.sha256.items()
        },
        "contrast": contrast,
        "device": machine.device,
        "dtype": machine.dtype,
        "reply tokens": str(REPLY_TOKENS),
    }


def _key(made_of: Mapping[str, str], stage: str) -> str:
    return json.dumps([stage, made_of], sort_keys=True)


def _left_over(out: Path, progress: Path, made_of: Mapping[str, str]) -> Measurement | None:
    """What an earlier run left of the same; of something else, an error where it is complete."""
    found = None
    try:
        found = read_measurement(out)
        earlier = found.made_of
    except InputError:
        earlier = _stopped_at(progress) or made_of
    changed = [n for n in {**made_of, **earlier} if made_of.get(n) != earlier.get(n)]
    if not changed:
        return found
    if found is not None and found.arrays:
        raise InputError(
            f"{out}: holds a finished measurement of another {' and '.join(changed)}; choose"
            " another --out"
        )
    warn(f"{out}: the {' and '.join(changed)} changed since the last run; measuring afresh")
    return None


def _stopped_at(progress: Path) -> Mapping[str, str] | None:
    """What a stopped measurement was made of; None where there is nothing of one."""
    from quantize.activations.saved import kept_key

    try:
        _, made_of = json.loads(kept_key(progress) or "")
    except (ValueError, TypeError):  # the key of another verb, which has its own
        return None
    return made_of if isinstance(made_of, dict) else None


def _nothing_to_remove(found: Measurement, least_rate: float) -> str | None:
    baseline = found.baseline
    if baseline.rate < least_rate:
        return (
            f"nothing to remove: {baseline.refused} of {baseline.prompts} prompts are refused"
            f" ({100 * baseline.rate:.0f} %), fewer than {100 * least_rate:.0f} %"
        )
    for kind in (REFUSED, found.contrast):
        count = len(members_of(found, PLAIN, kind, validation=False))
        if count < LEAST_PROMPTS:
            return (
                f"not enough to measure: {count} prompts are {kind} outside those kept for"
                f" choosing; at least {LEAST_PROMPTS} are needed"
            )
    return None
