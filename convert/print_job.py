"""Print what a run planned or made: one row an artifact, then what is worth knowing about each."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from convert.job import Job
from convert.terminal import console, plain_table, print_json, printable, readable_size, warn


def print_job(job: Job, out: Path, *, as_json: bool) -> None:
    """Print a dry run's plan, or what a run made in `out`; warnings go to stderr."""
    if as_json:
        print_json(_job_json(job))
        return
    stdout = console()
    table = plain_table("output", "bytes", "size", "bits/weight", "", right=("bytes", "size"))
    results = {result.artifact.name: result for result in job.results}
    for planned in job.plan.artifacts:
        result = results.get(planned.name)
        size = result.artifact.size_bytes if result else planned.size_bytes
        state = "planned" if result is None else "already there" if result.kept else "made"
        bits = f"{8 * planned.size_bytes / job.parameters:.2f}"
        table.add_row(planned.name, f"{size:,}", readable_size(size), bits, state)
    stdout.print(table)
    for lint in job.lints:
        warn(str(lint))
    for planned in job.plan.artifacts:
        for note in planned.notes:
            stdout.print(f"{planned.name}: {note}", markup=False)
        for warning in planned.warnings:
            warn(f"{planned.name}: {warning}")
        changed = results[planned.name].artifact.values_changed if results else 0
        if changed:
            warn(
                f"{planned.name}: {changed:,} values changed; {planned.target} does not"
                " hold every value of the source"
            )
    if results:
        stdout.print(f"in {printable(str(out))}", markup=False)
    else:
        stdout.print(
            f"read {job.plan.read_bytes:,} bytes, write {job.plan.write_bytes:,};"
            f" disk needed {job.disk_bytes:,} bytes ({readable_size(job.disk_bytes)}),"
            f" memory for blocks up to {readable_size(job.memory_bytes)}"
        )


def _job_json(job: Job) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": job.name,
        "parameters": job.parameters,
        "read_bytes": job.plan.read_bytes,
        "write_bytes": job.plan.write_bytes,
        "disk_bytes": job.disk_bytes,
        "memory_bytes": job.memory_bytes,
        "lints": [asdict(lint) for lint in job.lints],
        "planned": [
            {
                "name": planned.name,
                "target": planned.target,
                "size_bytes": planned.size_bytes,
                "files": {file.path: file.size_bytes for file in planned.files},
                "warnings": planned.warnings,
                "notes": planned.notes,
            }
            for planned in job.plan.artifacts
        ],
        "artifacts": [{**asdict(r.artifact), "kept": r.kept} for r in job.results],
    }
