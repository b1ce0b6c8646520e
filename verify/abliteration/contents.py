"""What the gate of an abliteration reports: pairs, controls, and what was edited and asked.

An edited artifact is described as `verify` describes any artifact, so that the same templates and
the same JUnit show it; the unedited one of its type stands where `verify` has the reference.
`GateReport.to_dict` is the machine's form, plain JSON values without NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verify.abliteration.replies import Limits
from verify.check import EXIT_CODES, State, total_state
from verify.differences import Difference
from verify.report.contents import ArtifactReport, plain

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class PairReport:
    """One edited artifact beside the unedited one.

    `scores` are refusal scores of first tokens, by class and side, as a plot shows them; None for
    what is no finite number. `differences` are replies that differ, by kind of prompt.
    """

    unedited: str
    artifact: ArtifactReport
    scores: Mapping[str, tuple[float | None, ...]]
    differences: Mapping[str, tuple[Difference, ...]]


@dataclass(frozen=True, slots=True)
class GateReport:
    """Everything one run saw; `prompts` are sha256 by file; a control has one check."""

    tool: str
    model: str
    edit: dict[str, Any]
    prompts: Mapping[str, str]
    limits: Limits
    pairs: tuple[PairReport, ...]
    controls: tuple[ArtifactReport, ...]

    @property
    def artifacts(self) -> tuple[ArtifactReport, ...]:
        """Edited ones and controls."""
        return (*(pair.artifact for pair in self.pairs), *self.controls)

    @property
    def state(self) -> State:
        """All pairs and controls together."""
        return total_state(artifact.state for artifact in self.artifacts)

    @property
    def exit_code(self) -> int:
        """As `verify` has it."""
        return EXIT_CODES[self.state]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        content: dict[str, Any] = plain(self)
        return {"schema_version": SCHEMA_VERSION, "state": self.state.value, **content}
