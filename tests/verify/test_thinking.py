"""Thinking turned on and off by the template: rendered, read as reasoning, and counted apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from convert.rendering import Tokenizer
from quantize.job import quantize
from tests.miniature import TEMPLATE, change_json
from tests.verify.test_verify import RIGHT, TOOL, outcome_of, write_gate
from verify.artifact import Artifact
from verify.check import State
from verify.engines import Engine
from verify.engines.scripted import ScriptedEngine
from verify.report.contents import ArtifactReport
from verify.spans import Span, label_tokens
from verify.verify import verify

OPENS = "<|im_start|>assistant\n{% if thinking %}<think>\n{% endif %}"
THOUGHT = "f it is\n</think>\n"
COUNT = 80


@pytest.fixture
def folder(reference_folder: Path, tmp_path: Path) -> Path:
    """A model whose template opens the reasoning where a conversation asks for it."""
    made = Path(shutil.copytree(reference_folder, tmp_path / "thinks"))
    template = TEMPLATE.replace("<|im_start|>assistant\n", OPENS)
    assert template != TEMPLATE
    change_json(made / "tokenizer_config.json", chat_template=template)
    return made


def write_suite(folder: Path) -> Path:
    """Every second conversation asks for thinking."""
    records = [
        {
            "id": f"p{i}", "messages": [{"role": "user", "content": f"call f with {i}"}],
            "tools": [TOOL], "expected": {"calls": [{"name": "f", "arguments": {"x": i}}]},
            **({"template_kwargs": {"thinking": True}} if i % 2 else {}),
        }
        for i in range(COUNT)
    ]  # fmt: skip
    path = folder / "suite.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def run(folder: Path, tmp_path: Path, max_new_tokens: int) -> ArtifactReport:
    quantize(str(folder), tmp_path, ["Q8_0"], name="m")
    tokenizer = Tokenizer.open(folder)

    def reply(prompt: Sequence[int]) -> Sequence[int]:
        text = tokenizer.decode(prompt)
        number = int(text.split("call f with ")[1].split("<")[0])
        assert text.endswith("<think>\n") is bool(number % 2)
        return tokenizer.encode((THOUGHT if number % 2 else "") + RIGHT.format(number))

    def choose(_: Artifact) -> Engine:
        return ScriptedEngine(reply)

    report = verify(
        folder, [tmp_path / "m-Q8_0.gguf"], suite=write_suite(tmp_path), gate=write_gate(tmp_path),
        max_new_tokens=max_new_tokens, open_engine=choose,
    )  # fmt: skip
    return report.artifacts[0]


def test_thinking_on_and_off_are_two_strata(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path, 256)
    assert {o.check: o.verdict.state for o in report.outcomes}["reasoning"] is State.PASS
    assert report.state is State.PASS
    found = {stratum.name: stratum for stratum in report.strata}
    assert list(found) == [
        "with reasoning", "without reasoning", "without template_kwargs", "with thinking=true",
    ]  # fmt: skip
    for stratum in found.values():
        assert (stratum.conversations, stratum.right) == (COUNT // 2, (COUNT // 2, COUNT // 2))


def test_models_that_were_only_seen_thinking_do_not_pass(folder: Path, tmp_path: Path) -> None:
    report = run(folder, tmp_path, 4)
    outcome = outcome_of(report, "reasoning")
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.verdict.numbers["unfinished"] == COUNT // 2
    assert "--max-new-tokens" in outcome.verdict.reason


def test_tokens_of_opened_reasoning_are_reasoning(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    ids = tokenizer.encode(THOUGHT + RIGHT.format(1))
    inside = len(tokenizer.encode(THOUGHT.rstrip()))
    spans = label_tokens(tokenizer, ids, finished=True, opened="think")
    assert {*spans[:inside]} == {Span.REASONING}
    assert spans.count(Span.TRIGGER) == 1
    assert Span.REASONING not in label_tokens(tokenizer, ids, finished=True)
