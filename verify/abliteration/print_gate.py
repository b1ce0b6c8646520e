"""A gate report on the terminal, and as the paragraph a model card carries."""

from __future__ import annotations

from typing import Any

from convert.terminal import console, plain_table, printable
from verify.abliteration.contents import GateReport
from verify.check import Outcome

_MARKS = {"pass": "pass", "fail": "FAIL", "not_enough_evidence": "unsure"}
_FINDINGS = 3
REMOVAL_TITLE = "## Refusals were removed from this model"
"""What every card of an edited artifact says."""


def print_gate(report: GateReport) -> None:
    """One table a pair."""
    out = console()
    for pair in report.pairs:
        edited = pair.artifact
        out.print(printable(f"{edited.name} ({edited.type}) against {pair.unedited}"))
        table = plain_table("check", "", "")
        for outcome in edited.outcomes:
            table.add_row(*_row(outcome))
        out.print(table)
    for control in report.controls:
        out.print(printable(f"control: {control.outcomes[0].verdict.reason}"))
    out.print(f"{_MARKS[report.state.value]}: edit {report.edit['sha256'][:12]}")


def _row(outcome: Outcome) -> tuple[str, str, str]:
    verdict = outcome.verdict
    lines = [verdict.reason]
    if verdict.state.value != "pass":
        found = outcome.findings[:_FINDINGS]
        lines += [f"{printable(f.subject)}: {printable(f.message)}" for f in found]
    return outcome.check, _MARKS[verdict.state.value], "\n".join(printable(x) for x in lines)


def statement(report: GateReport) -> str:
    """What was done to the model, by what, and whose responsibility its use is."""
    source: dict[str, Any] = report.edit["provenance"].get("source", {})
    name = source.get("repo") or source.get("name") or "the source model"
    revision = f" at revision {source['revision']}" if source.get("revision") else ""
    return (
        f"The weights of {name}{revision} were edited with {report.tool} so that it no longer"
        " refuses: from every edited projection the direction along which refused and harmless"
        " prompts differ was taken out (abliteration). The model will answer requests that the"
        " original refuses. Whoever deploys it is responsible for what it is used for."
    )


def card_text(report: GateReport) -> str:
    """Markdown that says plainly what was done, by what, and what was measured."""
    lines = [
        REMOVAL_TITLE,
        "",
        statement(report),
        "",
        f"Edit `{report.edit['sha256']}`. Measured on the edited files, each against the unedited"
        " file of the same type:",
        "",
        "| file | check | result |",
        "|---|---|---|",
    ]
    for artifact in report.artifacts:
        for outcome in artifact.outcomes:
            mark = _MARKS[outcome.verdict.state.value]
            reason = outcome.verdict.reason.replace("|", "\\|")
            lines.append(f"| {artifact.name} | {outcome.check} | {mark}: {reason} |")
    return "\n".join(lines) + "\n"
