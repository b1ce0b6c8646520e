"""Templates: what an artifact lost, edited, added or lets win is caught; its source's is told."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from convert.checkpoint import Checkpoint
from convert.rendering import Tokenizer
from quantize.job import quantize
from tests.miniature import TEMPLATE, change_json, write_checkpoint
from tests.verify.conftest import evidence
from tests.verify.damage import Edit, rewrite_gguf
from tests.verify.test_report import report_of, right_reply
from tests.vocabularies import data_file
from verify.check import Finding, Outcome, State, Verdict
from verify.evidence import Reference
from verify.report.terminal import print_report
from verify.templates import check_templates


def put(key: str, value: Any) -> Edit:
    return lambda values: values.__setitem__(key, value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (lambda values: values.pop("tokenizer.chat_template.tool_use"), "missing"),
        (put("tokenizer.chat_template", "x"), "not the reference's"),
    ],
)
def test_a_lost_or_edited_template(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, fields: Edit, message: str
) -> None:
    path = rewrite_gguf(artifacts["Q8_0"], tmp_path / "broken.gguf", fields=fields)
    outcome = check_templates(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert message in outcome.findings[0].message


def test_templates_that_a_folder_adds_or_that_win(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "folder"))
    templates = reference.tokenizer.templates.effective
    (folder / "chat_template.jinja").write_text(templates["default"])
    (finding,) = check_templates(evidence(reference, folder)).findings
    assert (finding.subject, finding.message) == ("template 'tool_use'", "missing")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(templates["tool_use"])
    assert check_templates(evidence(reference, folder)).verdict.state is State.PASS
    (folder / "additional_chat_templates" / "rag.jinja").write_text("x")
    (finding,) = check_templates(evidence(reference, folder)).findings
    assert finding.message == "the reference has none of this name"


def test_defects_of_the_references_own_template_are_told_and_fail_nothing(tmp_path: Path) -> None:
    official = data_file("templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja").read_text()
    folder = write_checkpoint(tmp_path / "m")
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": official}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    quantize(str(folder), tmp_path, ["Q8_0", "FP8_DYNAMIC"], name="m")
    with Checkpoint.open(folder) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(folder), (), ())
        for name in ("m-Q8_0.gguf", "m-FP8_DYNAMIC"):
            outcome = check_templates(evidence(reference, tmp_path / name))
            assert outcome.verdict.state is State.PASS
            assert outcome.verdict.numbers["defects"] == 9
            assert len(outcome.findings) == 9
            assert "template-brace-extra in 'tool_use'" in {f.subject for f in outcome.findings}
        mended = rewrite_gguf(
            tmp_path / "m-Q8_0.gguf",
            tmp_path / "mended.gguf",
            fields=put(
                "tokenizer.chat_template.tool_use", official.replace('"object"}}\n', '"object"}\n')
            ),
        )
        outcome = check_templates(evidence(reference, mended))
        assert outcome.verdict.state is State.FAIL
        assert "(of this artifact's template)" in outcome.findings[-1].message


def test_what_is_told_of_a_check_that_passed_is_printed(reference: Reference) -> None:
    report = report_of(reference, right_reply)
    finding = Finding("template-brace-extra in 'tool_use'", "after '}'")
    passed = Verdict(State.PASS, "all 2 are there, and no other; 1 defects")
    told = Outcome("templates", passed, (finding,))
    quiet = Outcome("gguf_weights", passed, (Finding("blk.0", "worst of all"),))
    artifact = replace(report.artifacts[0], outcomes=(*report.artifacts[0].outcomes, told, quiet))
    console = Console(width=200, file=io.StringIO())
    print_report(replace(report, artifacts=(artifact,)), console)
    shown = console.file.getvalue()
    assert "templates: all 2 are there" in shown
    assert "template-brace-extra in 'tool_use': after '}'" in shown
    assert "worst of all" not in shown
