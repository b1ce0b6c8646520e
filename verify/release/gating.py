"""The second step of a build: each artifact against its reference, under the gate of its type.

In: what was made. Out: a verify `Report` of one artifact each, kept under the fingerprint of the
question, so that a build that was stopped, or that adds an artifact, verifies only what is new; the
reference itself is computed once, by the cache of `verify`.

Times are left out of the reports that a release ships (they are 0): they differ from run to run,
and a release says the same whenever and wherever it is built.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.workers import Steps
from quantize.importance import read_importance
from verify.check import Finding, State
from verify.engines.opening import open_engine as engine_of_artifact
from verify.gate import read_gate
from verify.release.make import Made
from verify.release.provenance import tools
from verify.release.recipe import ReadRecipe
from verify.release.steps import Work, fingerprint
from verify.report.contents import ArtifactReport, Report
from verify.run_artifact import OpenEngine
from verify.suite import read_suite
from verify.verify import verify

_NO_MATTER = ("kernels", "model-signing")
"""Tools that change no answer: the bytes that kernels made are in the question themselves."""


@dataclass(frozen=True, slots=True)
class Gated:
    """An artifact and what was found out about it; `kept` if that was known already."""

    made: Made
    report: Report
    kept: bool

    @property
    def found(self) -> ArtifactReport:
        """The report's only artifact."""
        return self.report.artifacts[0]

    @property
    def passed(self) -> bool:
        """Whether it may be released."""
        return self.found.state is State.PASS

    @property
    def reason(self) -> str:
        """Why it may not be, in one line."""
        first = next((o for o in self.found.outcomes if o.verdict.state is self.found.state), None)
        return f"{first.check}: {first.verdict.reason}" if first else "nothing was measured"


def gate_inputs(read: ReadRecipe, checkpoint: Path) -> dict[str, Any]:
    """Suite and gate by hash: what was asked, for the manifest and the fingerprint."""
    gates = read.recipe.gates
    suite = read_suite(read.path(gates.suite), checkpoint, gates.limit)
    gate = read_gate(read.path(gates.gate), checkpoint)
    digest = hashlib.sha256(gate.model_dump_json().encode()).hexdigest()
    return {
        "suite": {
            "name": suite.name,
            "sha256": suite.sha256,
            "used": len(suite.conversations),
            "available": suite.available,
        },
        "gate": {"sha256": digest, "note": gate.note},
        "max_new_tokens": gates.max_new_tokens,
        "kv_type": gates.kv_type,
    }


@dataclass(frozen=True, slots=True)
class Verifying:
    """What the gates of all artifacts of one build share."""

    read: ReadRecipe
    work: Work
    checkpoint: Path
    source_files: Mapping[str, Any]
    asked: Mapping[str, Any]
    cache: Path
    engines: OpenEngine | None = None
    on_progress: Steps | None = None

    @property
    def open_engine(self) -> OpenEngine:
        """What opens an artifact's engine, with the recipe's KV cache unless a test says how."""
        kv_type = self.read.recipe.gates.kv_type
        return self.engines or partial(engine_of_artifact, kv_type=kv_type)

    def question(self, made: Made, **asked: Any) -> str:
        """The fingerprint of all that decides what is found out about an artifact."""
        return fingerprint(
            {
                "artifact": {file.path: file.sha256 for file in made.artifact.files},
                "source": {name: entry["sha256"] for name, entry in self.source_files.items()},
                "asked": dict(self.asked),
                "tools": {n: e.get("version") for n, e in tools().items() if n not in _NO_MATTER},
                **asked,
            }
        )

    def keep(self, made: Made, question: str, report: Report) -> Gated:
        """Keep what was found, without times and places."""
        report = without_places(without_times(report), self.work.folder)
        self.work.write_check(made.artifact.name, question, report)
        return Gated(made, report, kept=False)


def gate_artifact(shared: Verifying, made: Made) -> Gated:
    """Verify one artifact, unless the same question was answered before."""
    read, gates = shared.read, shared.read.recipe.gates
    imatrix = read.imatrix(read.recipe.options_of(made.wanted.spec))
    question = shared.question(made, imatrix=read_importance(imatrix).sha256 if imatrix else None)
    kept = shared.work.read_check(made.artifact.name, question)
    if kept is not None:
        return Gated(made, kept, kept=True)
    report = verify(
        shared.checkpoint,
        [made.path],
        suite=read.path(gates.suite),
        limit=gates.limit,
        gate=read.path(gates.gate),
        imatrix=imatrix,
        max_new_tokens=gates.max_new_tokens,
        cache=shared.cache,
        kv_type=gates.kv_type,
        on_progress=shared.on_progress,
        open_engine=shared.engines,
    )
    return shared.keep(made, question, report)


def without_times(report: Report) -> Report:
    """The same report, whenever it was made."""
    return replace(
        report,
        reference=replace(report.reference, seconds=0.0),
        artifacts=tuple(replace(artifact, seconds=0.0) for artifact in report.artifacts),
    )


def without_places(report: Report, folder: Path) -> Report:
    """The same report, wherever the artifacts lay: what an engine says names the file's path."""
    gone = re.compile(re.escape(str(folder)) + r"/(?:artifacts|edited|controls/\d+)/")
    artifacts = [
        replace(
            artifact,
            outcomes=tuple(
                replace(
                    outcome,
                    verdict=replace(outcome.verdict, reason=gone.sub("", outcome.verdict.reason)),
                    findings=tuple(
                        Finding(gone.sub("", f.subject), gone.sub("", f.message))
                        for f in outcome.findings
                    ),
                )
                for outcome in artifact.outcomes
            ),
        )
        for artifact in report.artifacts
    ]
    return replace(report, artifacts=tuple(artifacts))


def joined(reports: Sequence[Report]) -> Report:
    """Reports of one reference and suite as one."""
    if not reports:
        raise InputError("no artifact was verified")
    types = {name: asked for report in reports for name, asked in report.gate.types.items()}
    return replace(
        reports[0],
        gate=replace(reports[0].gate, types=types),
        artifacts=tuple(artifact for report in reports for artifact in report.artifacts),
    )
