"""The report: what was verified, how, and what came out, as JSON and as a table.

`Report.to_dict` is the machine's form: plain JSON values under a `schema_version` that changes when
a field changes its meaning. It names files and folders by their own names, never by a local path.
`print_report` is the person's form: two small tables, then whatever needs explaining.

Rates are written with their counts and their 95 % interval, because "97 %" of 30 is not "97 %" of
3,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from verify.check import EXIT_CODES, Outcome, State, total_state
from verify.engines import EngineInfo
from verify.limits import OF_LOG_PROBABILITIES
from verify.statistics import Rate

SCHEMA_VERSION = 1
STYLES = {State.PASS: "green", State.FAIL: "bold red", State.NOT_ENOUGH_EVIDENCE: "yellow"}
WORDS = {State.PASS: "pass", State.FAIL: "FAIL", State.NOT_ENOUGH_EVIDENCE: "not enough evidence"}
HEADINGS = {
    "calls": "exact\ncalls",
    "no_call": "no\ncall",
    "json": "\nJSON",
    "text": "exact\ntext",
    "refused": "\nrefused",
    "harmless": "harm-\nless",
    "malformed": "mal-\nformed",
}
"""Kinds of scores in the order of the table, and their headings."""
OF_ANSWERS = ("agreement", "served_calls", *OF_LOG_PROBABILITIES)
"""Checks that need a run; all others are about form."""
_FINDINGS_PRINTED = 5


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Which conversations were used."""

    name: str
    sha256: str
    used: int
    available: int
    with_tools: int
    tags: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Scores:
    """Right answers by kind (see `scoring.py`); malformed and cut off count all conversations."""

    kinds: Mapping[str, Rate]
    malformed: Rate
    cut_off: Rate


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """The reference, how it was computed and how often it is right."""

    name: str
    engine: EngineInfo
    scores: Scores
    seconds: float


@dataclass(frozen=True, slots=True)
class ArtifactReport:
    """One artifact; engine and scores are None if it was not run.

    `not_checked` names checks that cannot be made of it, as its files are out of reach; the size is
    then 0.
    """

    name: str
    kind: str
    type: str
    size_bytes: int
    state: State
    outcomes: tuple[Outcome, ...]
    engine: EngineInfo | None
    scores: Scores | None
    seconds: float
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """Everything one run of verify found out."""

    tool: str
    suite: SuiteReport
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
        content: dict[str, Any] = _plain(self)
        return {"schema_version": SCHEMA_VERSION, "state": self.state.value, **content}


def _plain(value: Any) -> Any:
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
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_report(report: Report, console: Console) -> None:
    """Two tables, against the reference and against what was expected, then what is no pass."""
    console.print(_verdict_table(report))
    console.print(_score_table(report))
    suite, engine = report.suite, report.reference.engine
    console.print(
        f"{suite.used} of {suite.available} conversations of {suite.name}; reference by "
        f"{engine.name} {engine.version} in {engine.dtype}.",
        style="dim",
    )
    for artifact in report.artifacts:
        if artifact.not_checked:
            _print_served(artifact, console)
        for outcome in artifact.outcomes:
            if outcome.verdict.state is not State.PASS:
                _print_outcome(artifact.name, outcome, console)


def _print_served(artifact: ArtifactReport, console: Console) -> None:
    """What was not looked at, and what stands for it."""
    by = f" by {artifact.engine.name} {artifact.engine.version}" if artifact.engine else ""
    unseen = ", ".join(artifact.not_checked)
    console.print(Text(f"{artifact.name}: served{by}; of its files nothing is known: no {unseen}"))
    for outcome in artifact.outcomes:
        if outcome.check == "served_calls" and outcome.verdict.state is State.PASS:
            console.print(Text(f"{artifact.name}: {outcome.verdict.reason}"))


def _new_table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _verdict_table(report: Report) -> Table:
    """A row an artifact; counts stand in the headings. `form` is every check without a run."""
    table = _new_table(f"Compared with {report.reference.name}, %")
    table.add_column("artifact", no_wrap=True)
    table.add_column("type", no_wrap=True)
    same = f"same calls\nof {report.suite.with_tools}", f"same text\nof {report.suite.used}"
    for heading in ("MB", "form", *same):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for artifact in report.artifacts:
        agreement = next(o for o in artifact.outcomes if o.check == "agreement")
        form = [o.verdict.state for o in artifact.outcomes if o.check not in OF_ANSWERS]
        table.add_row(
            artifact.name,
            artifact.type,
            f"{artifact.size_bytes / 1e6:.1f}" if artifact.size_bytes else "-",
            _state(total_state(form)) if form else "-",
            _percent(agreement.verdict.numbers.get("same_calls_rate")),
            _percent(agreement.verdict.numbers.get("same_text_rate")),
            _state(artifact.state),
        )
    return table


def _score_table(report: Report) -> Table:
    """Right answers by kind, the reference's first."""
    reference = report.reference.scores
    totals = {kind: rate.total for kind, rate in reference.kinds.items()}
    kinds = {kind: totals[kind] for kind in HEADINGS if kind in totals}
    table = _new_table("Compared with what was expected, %")
    table.add_column("model", no_wrap=True)
    for kind, total in (kinds | {"malformed": report.suite.used}).items():
        table.add_column(f"{HEADINGS[kind]}\nof {total}", justify="right", no_wrap=True)
    rows = [(report.reference.name, reference), *((a.name, a.scores) for a in report.artifacts)]
    for name, scores in rows:
        if scores is not None:
            rates = [scores.kinds[kind] for kind in kinds] + [scores.malformed]
            table.add_row(name, *(_percent(rate.value) for rate in rates))
    return table


def _percent(rate: object) -> str:
    return f"{100 * rate:.1f}" if isinstance(rate, float) else "-"


def _state(state: State) -> Text:
    return Text(WORDS[state], style=STYLES[state])


def _print_outcome(artifact: str, outcome: Outcome, console: Console) -> None:
    verdict = outcome.verdict
    line = Text.assemble(
        (WORDS[verdict.state], STYLES[verdict.state]),
        f"  {artifact}: {outcome.check}: {verdict.reason}",
    )
    console.print(line)
    for finding in outcome.findings[:_FINDINGS_PRINTED]:
        console.print(Text(f"    {finding.subject}: {finding.message}"))
    more = len(outcome.findings) - _FINDINGS_PRINTED
    if more > 0:
        console.print(Text(f"    and {more} more in the JSON report"))
