"""What a report holds: what was verified, how, under which gate, and what came out.

`Report.to_dict` is the machine's form: plain JSON values under a `schema_version` that changes when
a field changes its meaning. It names files and folders by their own names, never by a local path.
`report.schema.json` beside this file describes it. Checks are data here: a new one needs no change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from verify.check import EXIT_CODES, Outcome, State, total_state
from verify.differences import Difference
from verify.engines import EngineInfo
from verify.statistics import Rate
from verify.strata import Stratum

SCHEMA_VERSION = 4
OF_FILES = ("structure", "tokens", "templates", "rendering", "weights", "gguf_weights")
"""Checks of the files alone; all others need a run."""


@dataclass(frozen=True, slots=True)
class Detectable:
    """The smallest drop of the share of same calls that a suite shows, if so many prompts flip."""

    flip_share: float
    drop: float | None


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Which conversations were used, and what they can show.

    `later_turns` are the prompts that come on top of the conversations' first ones, `with_tools`
    counts both; `not_reached` names those whose recorded results answer no call of the reference.
    """

    name: str
    sha256: str
    used: int
    available: int
    with_tools: int
    tags: Mapping[str, int]
    detectable: tuple[Detectable, ...]
    later_turns: int = 0
    not_reached: tuple[str, ...] = ()

    @property
    def prompts(self) -> int:
        """How many replies there are of each model."""
        return self.used + self.later_turns


@dataclass(frozen=True, slots=True)
class GateReport:
    """What was asked: thresholds by artifact type, and a sentence the gate wants said."""

    note: str
    types: Mapping[str, Mapping[str, float | str]]


@dataclass(frozen=True, slots=True)
class Scores:
    """Right answers by kind (see `scoring.py`); the other rates count all conversations."""

    kinds: Mapping[str, Rate]
    malformed: Rate
    cut_off: Rate
    unfinished: Rate


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """The reference, how it was computed and how often it is right."""

    name: str
    engine: EngineInfo
    scores: Scores
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """The smallest GPU of the table that runs it at this context, one request; None: none does."""

    context: int
    gpus: int
    gpu: str | None


@dataclass(frozen=True, slots=True)
class ArtifactReport:
    """One artifact; engine and scores are None if it was not run.

    `not_checked` names checks that cannot be made of it, as its files are out of reach (the size is
    then 0), the reference's weights are, or a server names no tokens; and weights that could not be
    compared with the source's, with how many. `not_measured` names those for which the suite has no
    prompt. `confusion` counts call outcomes, {reference's: {artifact's: count}}; `pairs` what
    became of the reference's replies, by word (`pair_outcomes.py`); `strata` counts them apart by
    kinds of reply and of prompt, where there are several. `fit` is None where nothing can be said
    of memory.
    """

    name: str
    kind: str
    type: str
    size_bytes: int
    gate_class: str
    state: State
    outcomes: tuple[Outcome, ...]
    engine: EngineInfo | None
    scores: Scores | None
    seconds: float
    not_checked: tuple[str, ...] = ()
    not_measured: tuple[str, ...] = ()
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    differences: tuple[Difference, ...] = ()
    fit: Fit | None = None
    strata: tuple[Stratum, ...] = ()
    pairs: Mapping[str, int] = field(default_factory=dict)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """What `not_checked` comes to, in sentences."""
        files = [name for name in self.not_checked if name in OF_FILES]
        others = [name for name in self.not_checked if name not in OF_FILES]
        first = "not checked without the reference's weights:"
        if self.kind == "server":
            first = "of its files nothing is known: no"
        return (
            *([f"{first} {', '.join(files)}"] if files else []),
            *([f"not checked: {', '.join(others)}"] if others else []),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run of verify found out."""

    tool: str
    suite: SuiteReport
    gate: GateReport
    max_new_tokens: int
    reference: ReferenceReport
    artifacts: tuple[ArtifactReport, ...]

    @property
    def state(self) -> State:
        """The worst state of any artifact."""
        return total_state(artifact.state for artifact in self.artifacts)

    @property
    def exit_code(self) -> int:
        """0 passed, 1 a gate failed, 3 not enough evidence."""
        return EXIT_CODES[self.state]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        content: dict[str, Any] = plain(self)
        return {"schema_version": SCHEMA_VERSION, "state": self.state.value, **content}


def plain(value: Any) -> Any:
    """Dataclasses, rates and enumerations as plain JSON values."""
    if isinstance(value, Rate):
        low, high = value.interval
        return {
            "hits": value.hits,
            "total": value.total,
            "rate": value.value,
            "low": low,
            "high": high,
        }
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
