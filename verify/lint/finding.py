"""What a lint gives back: findings by name and severity, and the report they add up to.

An error is a checkpoint that a loader refuses, or loads and answers wrongly. A warning is one that
works here and fails somewhere, or is not what its maker meant. A note is worth knowing before a
release. Only errors make the exit code 1.

`LintReport.to_dict` is the machine's form; it names the folder by its own name, never by its path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Lint:
    """A kind of finding."""

    name: str
    severity: Severity
    meaning: str
    remedy: str


@dataclass(frozen=True, slots=True)
class LintFinding:
    """One finding: `subject` is a tensor, a module, a file or a key of config.json."""

    name: str
    severity: Severity
    subject: str
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True, slots=True)
class LintReport:
    """Everything one run of lint saw. `tensor_parallel` maps a size to why it does not work."""

    name: str
    stored: str
    tensors: int
    quantized: int
    shards: int
    size_bytes: int
    tensor_parallel: Mapping[int, str | None]
    findings: tuple[LintFinding, ...]

    @property
    def exit_code(self) -> int:
        """1 if there is an error, else 0."""
        return int(any(found.severity is Severity.ERROR for found in self.findings))

    def count(self) -> Mapping[Severity, int]:
        """Findings by severity."""
        counts = Counter(found.severity for found in self.findings)
        return {severity: counts[severity] for severity in Severity}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        counts = {f"{severity.value}s": number for severity, number in self.count().items()}
        return {"schema_version": SCHEMA_VERSION, **counts, **asdict(self)}
