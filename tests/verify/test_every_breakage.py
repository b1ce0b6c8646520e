"""Every way to break an artifact is caught by the check that is meant to catch it, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verify.breakages import BREAKAGES
from tests.verify.conftest import NAMES, evidence
from tests.verify.folder_breakages import FOLDER_BREAKAGES
from tests.verify.run_breakages import RUN_BREAKAGES
from tests.verify.test_behaviour import BREAKAGES as OTHER_ANSWERS
from verify.artifact import Kind
from verify.check import State
from verify.evidence import Evidence, Reference
from verify.gguf_weights import check_gguf_weights
from verify.rendering import check_rendering
from verify.structure import check_structure
from verify.templates import check_templates
from verify.tokens import check_tokens
from verify.weights import check_weights

OF_FILES = BREAKAGES | FOLDER_BREAKAGES
PAGE = Path(__file__).parents[2] / "docs/verify.md"
CHECKS = {
    "structure": check_structure,
    "tokens": check_tokens,
    "templates": check_templates,
    "rendering": check_rendering,
    "weights": check_weights,
    "gguf_weights": check_gguf_weights,
}


def applicable(given: Evidence) -> list[str]:
    other = "weights" if given.artifact.kind is Kind.GGUF else "gguf_weights"
    return [name for name in CHECKS if name != other]


@pytest.mark.parametrize("target", [*NAMES, "the reference itself"])
def test_an_undamaged_artifact_passes_all_of_them(
    reference: Reference, artifacts: dict[str, Path], target: str
) -> None:
    given = evidence(reference, artifacts.get(target, reference.folder))
    for name in applicable(given):
        outcome = CHECKS[name](given)
        assert outcome.verdict.state is State.PASS, (name, outcome.findings)


@pytest.mark.parametrize("name", OF_FILES)
def test_a_breakage_is_caught_by_its_check_and_named(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, name: str
) -> None:
    breakage = OF_FILES[name]
    given = evidence(reference, breakage.make(reference.folder, artifacts, tmp_path / "broken"))
    outcome = CHECKS[breakage.check](given)
    assert outcome.verdict.state is State.FAIL
    named = [f"{finding.subject}: {finding.message}" for finding in outcome.findings]
    assert any(breakage.named in text for text in named), named


def test_the_page_names_every_way_and_the_check_that_catches_it() -> None:
    """All three tables: broken files, broken as it runs, and other answers."""
    ways: dict[str, list[str]] = {check: [] for check in CHECKS}
    for name, breakage in (OF_FILES | RUN_BREAKAGES).items():
        ways.setdefault(breakage.check, []).append(name)
    for name, (_, checks) in OTHER_ANSWERS.items():
        for check in sorted(checks):
            ways.setdefault(check, []).append(name)
    page = PAGE.read_text(encoding="utf-8")
    for check, names in ways.items():
        assert f"| `{check}` | {'; '.join(names)} |".replace("<tool_call>", "`<tool_call>`") in page


def test_the_table_is_as_long_as_it_was_promised_and_uses_every_check() -> None:
    assert len(OF_FILES) >= 25
    assert {breakage.check for breakage in OF_FILES.values()} == CHECKS.keys()
