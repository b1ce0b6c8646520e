"""Writes a report into a folder: report.html, report.json, junit.xml.

Each file is written beside its place and moved there, so that a reader never finds half of one;
files of an earlier report are replaced, anything else in the folder is left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.staging import write_whole
from verify.report.contents import Report
from verify.report.html import render_html
from verify.report.junit import render_junit


def prepare_folder(folder: Path) -> None:
    """Make the folder, before a long run rather than after. Raises InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder: {error.strerror}") from error


def write_report(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write all three forms; the paths written. Raises InputError where that cannot be done."""
    junit = render_junit(f"{report.tool} verify", report.artifacts)
    return write_forms(render_html(report), report.to_dict(), junit, folder)


def write_forms(html: str, content: dict[str, Any], junit: str, folder: Path) -> tuple[Path, ...]:
    """Write a report of any verb, rendered; the paths written."""
    forms = {
        "report.html": html,
        "report.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "junit.xml": junit,
    }
    prepare_folder(folder)
    try:
        for name, text in forms.items():
            write_whole(folder / name, text.encode())
    except OSError as error:
        raise InputError(f"{folder}: the report cannot be written: {error.strerror}") from error
    return tuple(folder / name for name in forms)
