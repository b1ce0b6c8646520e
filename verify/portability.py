"""Portability: can the programs that read calls still read the artifact's, as they could before?

In: the answers of both. Out: an Outcome over the prompts at which the reference writes a call, or
None if there are none. For every property of `call_form.py` each prompt says whether the reply of
either model has it; a reply without a call lacks nothing. What decides is, property by property,
how often the artifact lacks what the reference has (`statistics.Flips`, one margin in the gate for
all). Findings name the property, the count, and the engines that would be hurt.

Which engine needs what is data, with a version and evidence: `portability.yaml`. A property that no
engine needs is no property here. No engine's parser is imitated: the real ones differ from version
to version, and `make vllm` runs one.

A reference that lacks a property everywhere (arguments first, say) can lose nothing there; the
numbers show it all the same, since it tells which engines cannot read the model at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from convert.conversation import Conversation
from convert.yaml_file import read_yaml
from verify.call_form import Form, lacking, writes_calls
from verify.check import Finding, Number, Outcome, Point, State, Verdict, total_state
from verify.evidence import Answer, Evidence
from verify.statistics import Flips, count_flips

NAME = "portability"
TABLE = Path(__file__).with_name("portability.yaml")
_PREVIEW = 200


class EngineNeeds(BaseModel):
    """One engine in one version: what happens to a call that lacks a property, by property."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    version: str = Field(min_length=1)
    source: str = Field(min_length=1)
    needs: dict[Form, str] = Field(min_length=1)


class Needs(BaseModel):
    """The table; `version` is part of every report."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: int = Field(ge=1)
    engines: tuple[EngineNeeds, ...]

    @model_validator(mode="after")
    def _check(self) -> Needs:
        needed = {form for engine in self.engines for form in engine.needs}
        unneeded = sorted({*Form} - needed)
        if unneeded:
            raise ValueError(f"no engine needs {unneeded[0]}")
        return self


@cache
def needs_table() -> Needs:
    """The table in this package."""
    return read_yaml(TABLE, Needs)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A prompt at which the reference writes a call, and what both replies lack."""

    conversation: Conversation
    theirs: Answer
    ours_lack: frozenset[Form]
    theirs_lack: frozenset[Form]


def check_portability(evidence: Evidence, /) -> Outcome | None:
    """Compare how both write calls; None if the reference writes none."""
    pairs = _pairs(evidence)
    if not pairs:
        return None
    margin = evidence.thresholds.drops.portability
    flips = {form: _flips(pairs, form) for form in Form}
    states = {form: flips[form].decide(margin) for form in Form}
    state = total_state(states.values())
    deciding = [form for form in Form if states[form] is state]
    worst = max(deciding, key=lambda form: (flips[form].drop or 0, flips[form].worse))
    lost = [form for form in Form if flips[form].worse]
    lost.sort(key=lambda form: -flips[form].worse)
    reason = _reason(state, pairs, flips, worst, margin)
    return Outcome(
        NAME,
        Verdict(state, reason, _numbers(pairs, flips, worst, margin)),
        tuple(_finding(pairs, flips, form) for form in lost),
        tuple(_point(pairs, flips, form) for form in Form),
    )


def _pairs(evidence: Evidence) -> list[_Pair]:
    assert evidence.answers is not None
    reference = evidence.reference
    tokenizer = reference.tokenizer
    special = frozenset(tokenizer.special_tokens.values()) & frozenset(tokenizer.added_tokens)
    found = []
    for conversation, ours, theirs in zip(
        reference.conversations, reference.answers, evidence.answers, strict=True
    ):
        if conversation.tools and writes_calls(ours):
            offered = frozenset(tool.get("function", tool)["name"] for tool in conversation.tools)
            lack = (lacking(answer, offered, special) for answer in (ours, theirs))
            found.append(_Pair(conversation, theirs, *lack))
    return found


def _flips(pairs: Sequence[_Pair], form: Form) -> Flips:
    return count_flips([(form not in p.ours_lack, form not in p.theirs_lack) for p in pairs])


def _has(pairs: Sequence[_Pair], form: Form) -> tuple[int, int]:
    """How many replies of the reference and of the artifact have a property."""
    ours = sum(form not in pair.ours_lack for pair in pairs)
    return ours, sum(form not in pair.theirs_lack for pair in pairs)


def _reason(
    state: State, pairs: Sequence[_Pair], flips: dict[Form, Flips], worst: Form, margin: float
) -> str:
    found = flips[worst]
    low, high = found.interval
    any_lost = sum(bool(pair.theirs_lack - pair.ours_lack) for pair in pairs)
    shown = (
        f"{any_lost} of {len(pairs)} replies with calls lost something an engine needs; most:"
        f" {worst.value}, {found.worse} lost, drop {100 * (found.drop or 0):.1f} points"
        f" ({100 * low:.1f} to {100 * high:.1f}), margin {100 * margin:.1f}"
    )
    if state is State.NOT_ENOUGH_EVIDENCE:
        return f"{shown}: about {max(found.needed(margin), len(pairs) + 1)} prompts needed"
    return shown


def _numbers(
    pairs: Sequence[_Pair], flips: dict[Form, Flips], worst: Form, margin: float
) -> dict[str, Number]:
    """Those of the property that decides, under the names that the other paired checks use."""
    found = flips[worst]
    low, high = found.interval
    ours, theirs = _has(pairs, worst)
    return {
        "prompts": len(pairs),
        "worst": worst.value,
        "reference_right": ours,
        "artifact_right": theirs,
        "worse": found.worse,
        "better": found.better,
        "drop": found.drop,
        "drop_low": low,
        "drop_high": high,
        "margin": margin,
        "mcnemar_p": found.p_value,
        "prompts_needed": found.needed(margin),
        "table_version": needs_table().version,
    }


def _point(pairs: Sequence[_Pair], flips: dict[Form, Flips], form: Form) -> Point:
    ours, theirs = _has(pairs, form)
    found = flips[form]
    counts = {"reference": ours, "artifact": theirs, "lost": found.worse, "gained": found.better}
    return Point(form.value, counts)


def _finding(pairs: Sequence[_Pair], flips: dict[Form, Flips], form: Form) -> Finding:
    ours, theirs = _has(pairs, form)
    first = next(p for p in pairs if form in p.theirs_lack and form not in p.ours_lack)
    hurt = [
        f"{engine.name} {engine.version}: {engine.needs[form]}"
        for engine in needs_table().engines
        if form in engine.needs
    ]
    return Finding(
        form.value,
        f"lost in {flips[form].worse} of {len(pairs)} replies (reference has it in {ours},"
        f" artifact in {theirs}), first {first.conversation.id}"
        f" {first.theirs.text[:_PREVIEW]!r}. Hurts {'; '.join(hurt)}",
    )
