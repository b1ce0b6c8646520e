"""Every lint fires on a checkpoint broken in its way, by name and subject, and no other does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.miniature import write_checkpoint
from tests.verify.lint.breakages import BREAKAGES, FURTHER
from tests.verify.lint.checkpoints import CALIBRATED, DATA_FREE, OTHERS, readable
from tests.verify.lint.conftest import MakeClean
from tests.verify.lint.edits import Breakage
from verify.lint.finding import LintReport, Severity
from verify.lint.lint import lint
from verify.lint.lints import LINTS

NANO = Path(__file__).parents[3] / "examples" / "hermes-nano"
BY_NATURE = {
    "FP8_BLOCK": {"tensor-parallel-limited"},
    "DEEPSEEK": {"tensor-parallel-limited"},
    "W4A16": {"tensor-parallel-limited"},
    "W4A16_ASYM": {"tensor-parallel-limited"},
    "W8A16": {"tensor-parallel-limited"},
    "NARROW": {"tensor-parallel-impossible"},
    "FP8": {"tensor-scale-differs"},
    "AUTOFP8": {"tensor-scale-differs"},
}
"""What is true of a clean miniature: heads smaller than a block, or one scale a tensor."""


def names(report: LintReport) -> set[str]:
    return {finding.name for finding in report.findings}


def test_every_lint_has_a_breakage() -> None:
    assert set(BREAKAGES) == set(LINTS)


@pytest.mark.parametrize("scheme", [*DATA_FREE, *CALIBRATED, *OTHERS])
def test_clean_checkpoints_of_every_layout(clean: MakeClean, scheme: str) -> None:
    report = lint(clean(scheme))
    assert names(report) == BY_NATURE.get(scheme, set()), report.findings
    assert report.quantized > 0


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_clean_16_bit_checkpoints(tmp_path: Path, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "m", dtype=dtype, tied=True)
    readable(folder)
    report = lint(folder)
    assert report.findings == ()
    assert report.stored == "not quantized"


def assert_fires(name: str, breakage: Breakage, copy: MakeClean, tmp_path: Path) -> None:
    readable(write_checkpoint(tmp_path / "16-bit"))
    folder = copy(breakage.scheme)
    breakage.damage(folder)
    report = lint(folder)
    by_nature = BY_NATURE.get(breakage.scheme, set())
    assert names(report) - by_nature - {name} == set(breakage.also) - by_nature, report.findings
    named = [finding for finding in report.findings if finding.name == name]
    assert any(breakage.subject in finding.subject for finding in named), report.findings
    errors = any(LINTS[found].severity is Severity.ERROR for found in names(report))
    assert report.exit_code == int(errors)


@pytest.mark.parametrize("name", LINTS)
def test_the_lint_fires(name: str, copy: MakeClean, tmp_path: Path) -> None:
    assert_fires(name, BREAKAGES[name], copy, tmp_path)


@pytest.mark.parametrize("what", FURTHER)
def test_it_fires_in_other_layouts(what: str, copy: MakeClean, tmp_path: Path) -> None:
    name, breakage = FURTHER[what]
    assert_fires(name, breakage, copy, tmp_path)


def test_the_embedding_that_a_tool_quantizes_when_it_matches_by_name(tmp_path: Path) -> None:
    from tests.peers import model_free_ptq

    source = write_checkpoint(tmp_path / "source")
    folder = model_free_ptq(source, tmp_path / "out", "FP8_DYNAMIC", ["lm_head"])
    found = {f.name: f.subject for f in lint(folder).findings}
    assert found["embedding-quantized"] == "model.embed_tokens"
    assert found["file-mode"] == "model.safetensors"


@pytest.mark.skipif(
    not (NANO / "model.safetensors").is_file(), reason="hermes-nano has no weights here"
)
def test_our_own_output_is_clean(tmp_path: Path) -> None:
    from quantize.job import quantize

    quantize(str(NANO), tmp_path, ["FP8_DYNAMIC"], name="nano")
    report = lint(tmp_path / "nano-FP8_DYNAMIC")
    assert report.findings == ()
    assert report.tensor_parallel == {
        1: None,
        2: None,
        4: None,
        8: None,
        16: report.tensor_parallel[16],
    }
    assert "8 attention heads" in str(report.tensor_parallel[16])
