"""The report on a terminal: two small tables, then whatever needs explaining.

Rates are written with their counts and their 95 % interval, because "97 %" of 30 is not "97 %" of
3,000.
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from convert.terminal import printable
from verify.check import Outcome, State, total_state
from verify.report.contents import OF_FILES, ArtifactReport, Report

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
_FINDINGS_PRINTED = 5
_TOLD = ("tokens", "templates", "rendering")
"""Checks whose findings are worth knowing where they pass: what the reference has as well."""


def print_report(report: Report, console: Console) -> None:
    """Two tables, against the reference and against what was expected, then what is no pass.

    Of some checks that pass too: what the reference's own files have that is worth knowing.
    """
    console.print(_verdict_table(report))
    console.print(_score_table(report))
    suite, engine = report.suite, report.reference.engine
    about = (
        f"{suite.used} of {suite.available} conversations of {suite.name}{_turns(report)};"
        " reference by "
        f"{engine.name} {engine.version} in {engine.dtype}.{_detectable(report)}"
    )
    console.print(Text(printable(about)), style="dim")
    if report.gate.note:
        console.print(Text(printable(report.gate.note)), style="dim")
    for artifact in report.artifacts:
        _print_counts(artifact, console)
        _print_unchecked(artifact, console)
        for outcome in artifact.outcomes:
            told = outcome.check in _TOLD and outcome.findings
            if outcome.verdict.state is not State.PASS or told:
                _print_outcome(artifact.name, outcome, console)


def _turns(report: Report) -> str:
    """Turns after the first, and those that could not be asked."""
    suite = report.suite
    if not suite.later_turns and not suite.not_reached:
        return ""
    missed = f", {len(suite.not_reached)} not reached" if suite.not_reached else ""
    return f", {suite.later_turns} later turns{missed}"


def _print_counts(artifact: ArtifactReport, console: Console) -> None:
    """What became of the reference's replies, by which tier calls are equal, and the strata."""
    words = [f"{word} {count}" for word, count in artifact.pairs.items() if count]
    if words:
        line = f"{artifact.name}: the reference's replies became: {', '.join(words)}"
        console.print(Text(printable(line)), style="dim")
    agreement = next(o for o in artifact.outcomes if o.check == "agreement")
    tiers = [f"{p.subject} {n}" for p in agreement.points if (n := p.values.get("replies"))]
    if tiers:
        line = f"{artifact.name}: replies with calls by the tier that makes them equal: "
        console.print(Text(printable(line + ", ".join(tiers)), style="dim"))
    for stratum in artifact.strata:
        kept = f", {stratum.kept} kept so" if stratum.kept is not None else ""
        line = (
            f"{artifact.name}: {stratum.conversations} {stratum.name}{kept};"
            f" right calls {stratum.right[1]} of {stratum.due} (reference {stratum.right[0]});"
            f" unfinished {stratum.unfinished[1]} (reference {stratum.unfinished[0]})"
        )
        console.print(Text(printable(line), style="dim"))


def _print_unchecked(artifact: ArtifactReport, console: Console) -> None:
    """What was not looked at, and what stands for it."""
    by = ""
    if artifact.kind == "server":
        engine = artifact.engine
        by = f"served by {engine.name} {engine.version}; " if engine else "served; "
    for sentence in artifact.unchecked:
        console.print(Text(printable(f"{artifact.name}: {by}{sentence}")))
    for outcome in artifact.outcomes:
        if outcome.check == "served_calls" and outcome.verdict.state is State.PASS:
            console.print(Text(printable(f"{artifact.name}: {outcome.verdict.reason}")))
            counts = [
                f"{point.subject} {values['as generated']} and {values['as served']}"
                f" of {values['prompts']}"
                for point in outcome.points
                for values in (point.values,)
            ]
            line = f"{artifact.name}: right as generated, and as served: {', '.join(counts)}"
            console.print(Text(printable(line)), style="dim")


def _detectable(report: Report) -> str:
    """What drop the suite can show at all, for the middle one of the assumed shares of flips."""
    middle = report.suite.detectable[len(report.suite.detectable) // 2]
    if middle.drop is None:
        return ""
    return (
        f" Of {report.suite.with_tools} with tools, a drop of {100 * middle.drop:.1f} points is the"
        f" smallest to show if {100 * middle.flip_share:.0f} % flip."
    )


def _new_table(title: str | Text) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _verdict_table(report: Report) -> Table:
    """A row an artifact; counts stand in the headings. `form` is every check without a run."""
    table = _new_table(Text(f"Compared with {printable(report.reference.name)}, %"))
    table.add_column("artifact", no_wrap=True)
    table.add_column("type", no_wrap=True)
    same = f"same calls\nof {report.suite.with_tools}", f"same text\nof {report.suite.prompts}"
    for heading in ("MB", "form", *same):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for artifact in report.artifacts:
        agreement = next(o for o in artifact.outcomes if o.check == "agreement")
        form = [o.verdict.state for o in artifact.outcomes if o.check in OF_FILES]
        table.add_row(
            Text(printable(artifact.name)),
            Text(printable(artifact.type)),
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
    for kind, total in (kinds | {"malformed": report.suite.prompts}).items():
        table.add_column(f"{HEADINGS[kind]}\nof {total}", justify="right", no_wrap=True)
    rows = [(report.reference.name, reference), *((a.name, a.scores) for a in report.artifacts)]
    for name, scores in rows:
        if scores is not None:
            rates = [scores.kinds[kind] for kind in kinds] + [scores.malformed]
            table.add_row(Text(printable(name)), *(_percent(rate.value) for rate in rates))
    return table


def _percent(rate: object) -> str:
    return f"{100 * rate:.1f}" if isinstance(rate, float) else "-"


def _state(state: State) -> Text:
    return Text(WORDS[state], style=STYLES[state])


def _print_outcome(artifact: str, outcome: Outcome, console: Console) -> None:
    verdict = outcome.verdict
    line = Text.assemble(
        (WORDS[verdict.state], STYLES[verdict.state]),
        printable(f"  {artifact}: {outcome.check}: {verdict.reason}"),
    )
    console.print(line)
    for finding in outcome.findings[:_FINDINGS_PRINTED]:
        console.print(Text(printable(f"    {finding.subject}: {finding.message}")))
    more = len(outcome.findings) - _FINDINGS_PRINTED
    if more > 0:
        console.print(Text(f"    and {more} more in the JSON report"))
