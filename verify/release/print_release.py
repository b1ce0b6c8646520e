"""Print what a build, a check, a prediction or a publication came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from convert.terminal import console, plain_table, print_json, printable, readable_size, warn
from verify.check import State
from verify.release.build import Build
from verify.release.check import Checked
from verify.release.predict import Prediction
from verify.release.publish import Upload
from verify.report.terminal import WORDS


def print_build(built: Build, out: Path, *, as_json: bool) -> None:
    """One row an artifact, then why some are not released."""
    if as_json:
        print_json(_build_json(built))
        return
    stdout = console()
    table = plain_table("artifact", "size", "made", "verified", "gate", right=("size",))
    for one in built.gated:
        table.add_row(
            one.made.artifact.name,
            readable_size(one.made.artifact.size_bytes),
            "already there" if one.made.kept else "now",
            "already known" if one.kept else "now",
            WORDS[one.found.state],
        )
    stdout.print(table)
    for lint in dict.fromkeys(str(lint) for one in built.gated for lint in one.made.lints):
        warn(lint)
    for one in built.gated:
        if not one.passed:
            warn(f"{one.made.artifact.name}: not released: {one.reason}")
    for duty in built.duties.duties:
        stdout.print(printable(f"licence {built.duties.id}: {duty.duty}: {duty.how}"))
    stdout.print(_where(built, out))


def _where(built: Build, out: Path) -> str:
    if built.left_out:
        return (
            f"left out by --only: {', '.join(built.left_out)}; a build without it takes over what"
            " is made and verified, and puts the release together"
        )
    if not built.put_together:
        return f"nothing passed, nothing is released; see {out / 'quarantine'}"
    state = "is as it was" if built.was_there else "is complete"
    return f"{out}: the release {state}; check it with: hermes-quant release check {out}"


def _build_json(built: Build) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": built.name,
        "released": built.put_together,
        "unchanged": built.was_there,
        "left_out": list(built.left_out),
        "licence": {"id": built.duties.id, "duties": [asdict(d) for d in built.duties.duties]},
        "artifacts": [
            {
                "name": one.made.artifact.name,
                "target": one.made.wanted.target,
                "size_bytes": one.made.artifact.size_bytes,
                "made": not one.made.kept,
                "verified": not one.kept,
                "state": one.found.state.value,
                "reason": None if one.passed else one.reason,
            }
            for one in built.gated
        ],
    }


def print_checked(checked: Checked, *, as_json: bool) -> None:
    """One row for each thing that was looked at, then every finding."""
    if as_json:
        print_json(checked.to_dict())
        return
    stdout = console()
    table = plain_table("check", "", "what was found")
    for outcome in checked.outcomes:
        table.add_row(
            outcome.check, WORDS[outcome.verdict.state], printable(outcome.verdict.reason)
        )
    stdout.print(table)
    for outcome in checked.outcomes:
        if outcome.verdict.state is State.FAIL:
            for finding in outcome.findings:
                stdout.print(printable(f"{finding.subject}: {finding.message}"))


def print_uploads(uploads: Sequence[Upload], *, as_json: bool) -> None:
    """One row a repository, then where it went."""
    if as_json:
        print_json({"schema_version": 1, "uploads": [asdict(upload) for upload in uploads]})
        return
    stdout = console()
    table = plain_table("repository", "files", "size", "sent", "", right=("files", "size", "sent"))
    for upload in uploads:
        table.add_row(
            upload.place,
            str(len(upload.files)),
            readable_size(upload.size_bytes),
            str(upload.sent),
            printable(upload.answer),
        )
    stdout.print(table)


def print_prediction(found: Prediction, *, as_json: bool) -> None:
    """One row an output, then what the build would need."""
    if as_json:
        licence = {"id": found.duties.id, "duties": [asdict(d) for d in found.duties.duties]}
        stated = {k: v for k, v in asdict(found).items() if k != "duties"}
        print_json({"schema_version": 1, **stated, "licence": licence})
        return
    stdout = console()
    table = plain_table("output", "bytes", "size", "bits/weight", right=("bytes", "size"))
    for output in found.outputs:
        about = "" if output.size_is_exact else "about "
        size = f"{about}{output.size_bytes:,}"
        bits = f"{output.bits_per_weight:.2f}"
        table.add_row(output.name, size, readable_size(output.size_bytes), bits)
    stdout.print(table)
    stdout.print(
        f"read {found.read_bytes:,} bytes, write {found.write_bytes:,}; disk"
        f" {readable_size(found.disk_bytes)}; memory {readable_size(found.make_memory_bytes)} to"
        f" make, {readable_size(found.verify_memory_bytes)} to verify (the reference in float32);"
        f" {found.seconds:,.0f} s of work on weights with {found.threads} threads, disk not counted"
    )
    for duty in found.duties.duties:
        state = "" if duty.met else "NOT MET: "
        stdout.print(printable(f"licence {found.duties.id}: {duty.duty}: {state}{duty.how}"))
    for remark in found.remarks:
        warn(remark)
