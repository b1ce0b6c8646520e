"""Every lint there is: its name, how bad it is, what it means and what to do about it.

Names are stable: scripts and continuous integration match on them. docs/lint.md shows this table
to readers; a test holds the two against each other, and another shows every lint to fire.
"""

from __future__ import annotations

from verify.lint import lints_of_files, lints_of_schemes, lints_of_templates
from verify.lint.finding import LintFinding

_TABLES = (lints_of_schemes.TABLE, lints_of_files.TABLE, lints_of_templates.TABLE)
LINTS = {lint.name: lint for table in _TABLES for lint in table}
"""By name, in the order in which they are reported."""


def finding(name: str, subject: str, found: str, expected: str) -> LintFinding:
    """A finding of the lint `name`; how bad it is and what to do comes from the table."""
    lint = LINTS[name]
    return LintFinding(name, lint.severity, subject, found, expected, lint.remedy)
