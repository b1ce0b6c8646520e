"""A gate report on the terminal, and as the paragraph a model card carries."""

from __future__ import annotations

from typing import Any

from convert.terminal import console, plain_table, printable
from verify.abliteration.gate import GateReport
from verify.check import Outcome

_MARKS = {"pass": "pass", "fail": "FAIL", "not_enough_evidence": "unsure"}
_FINDINGS = 3
REMOVAL_TITLE = "## Refusals were removed from this model"
"""What every card of an edited artifact says."""


def print_gate(report: GateReport) -> None:
    """One table a pair."""
    out = console()
    for pair in report.pairs:
        out.print(printable(f"{pair.edited} ({pair.type}) against {pair.unedited}"))
        table = plain_table("check", "", "")
        for outcome in pair.outcomes:
            table.add_row(*_row(outcome))
        out.print(table)
    for control in report.controls:
        out.print(printable(f"control: {control.verdict.reason}"))
    out.print(f"{_MARKS[report.state.value]}: edit {report.edit['sha256'][:12]}")


def _row(outcome: Outcome) -> tuple[str, str, str]:
    verdict = outcome.verdict
    lines = [verdict.reason]
    if verdict.state.value != "pass":
        found = outcome.findings[:_FINDINGS]
        lines += [f"{printable(f.subject)}: {printable(f.message)}" for f in found]
    return outcome.check, _MARKS[verdict.state.value], "\n".join(printable(x) for x in lines)


def card_text(report: GateReport) -> str:
    """Markdown that says plainly what was done, by what, and what was measured."""
    source: dict[str, Any] = report.edit["provenance"].get("source", {})
    name = source.get("repo") or source.get("name") or "the source model"
    revision = f" at revision `{source['revision']}`" if source.get("revision") else ""
    lines = [
        REMOVAL_TITLE,
        "",
        f"The weights of {name}{revision} were edited with {report.tool} so that it no longer"
        " refuses: from every edited projection the direction along which refused and harmless"
        " prompts differ was taken out (abliteration). The model will answer requests that the"
        " original refuses. Whoever deploys it is responsible for what it is used for.",
        "",
        f"Edit `{report.edit['sha256']}`. Measured on the edited files, each against the unedited"
        " file of the same type:",
        "",
        "| file | check | result |",
        "|---|---|---|",
    ]
    for pair in report.pairs:
        for outcome in pair.outcomes:
            mark = _MARKS[outcome.verdict.state.value]
            reason = outcome.verdict.reason.replace("|", "\\|")
            lines.append(f"| {pair.edited} | {outcome.check} | {mark}: {reason} |")
    lines += [f"| control | refusals | {c.verdict.reason} |" for c in report.controls]
    return "\n".join(lines) + "\n"
