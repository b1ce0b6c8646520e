"""A fit report as a model card holds it: one markdown table, and the commands to run.

In: a `Report`. Out: markdown text; the figures are those of the terminal's table.
"""

from __future__ import annotations

from quantize.fit.fit import Report
from quantize.fit.table import DASH, count, gb, gib, headline, verdict_text


def markdown(report: Report) -> str:
    """The table as a model card holds it, with the commands of the recommended artifact."""
    lines = [f"### {headline(report)}", ""]
    if report.survey:
        lines += ["| artifact | engine | size | smallest GPU |", "| --- | --- | ---: | --- |"]
        for row in report.survey:
            many = f"{row.count} x " if row.count > 1 else ""
            gpu = f"{many}{row.gpu.name}" if row.gpu else "-"
            size = gb(row.candidate.size_bytes)
            lines.append(f"| {row.candidate.target} | {row.candidate.engine} | {size} | {gpu} |")
        return "\n".join(lines) + "\n"
    lines += [
        "| artifact | engine | size | GiB per GPU | verdict | largest context | users | GPUs |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for answer in report.answers:
        fullest = answer.fullest
        cells = (
            answer.candidate.target,
            answer.engine,
            gb(answer.candidate.size_bytes),
            gib(fullest.value) if fullest else DASH,
            verdict_text(answer),
            count(answer.largest_context),
            count(answer.largest_concurrency),
            count(answer.fewest_gpus),
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{report.why[0].upper()}{report.why[1:]}."]
    best = report.recommended
    if best is not None:
        commands = [command for command in (best.make, best.command) if command]
        lines += ["", "```sh", *commands, "```"]
    return "\n".join(lines) + "\n"
