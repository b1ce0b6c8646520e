"""Rendering: an artifact's own files make the reference's prompts, and what is told of turns."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.rendering import Tokenizer
from quantize.job import quantize
from tests.miniature import TEMPLATE, change_json, write_checkpoint
from tests.verify.conftest import NANO, PROMPTS, evidence
from tests.verify.damage import Edit, rewrite_gguf
from tests.verify.replies import answer
from tests.verify.template_damage import DEFECTS, GOOD
from tests.verify.test_llama_server import BINARY, serving
from tests.verify.test_tokens import BYTE_LEVEL
from verify import rendering
from verify.artifact import open_artifact
from verify.check import State
from verify.evidence import Answer, Reference, make_prompts
from verify.own_prompts import open_prompts
from verify.prefix_stability import measure_stability
from verify.prompt_tokens import replay, write_fixture
from verify.rendering import check_rendering
from verify.suite import read_suite

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "go"}
CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "ok"}
TOOL_USE, ADD_BOS = "tokenizer.chat_template.tool_use", "tokenizer.ggml.add_bos_token"


@pytest.mark.parametrize("target", ["F32", "Q8_0", "FP8_DYNAMIC"])
def test_undamaged_artifacts_pass(
    reference: Reference, artifacts: dict[str, Path], target: str
) -> None:
    outcome = check_rendering(evidence(reference, artifacts[target]))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.reason == "same ids for 3 of 3 prompts"
    assert outcome.verdict.numbers["rendered"] == 3
    assert outcome.findings == ()


@pytest.mark.parametrize("target", ["Q8_0", "FP8_DYNAMIC"])
def test_hermes_nano_passes_and_its_turns_begin_with_the_ones_before(
    made: dict[str, Path], target: str
) -> None:
    checkpoint, tokenizer = Checkpoint.open(NANO), Tokenizer.open(NANO)
    conversations = read_suite(None, NANO, PROMPTS).conversations
    prompts = make_prompts(checkpoint, tokenizer, conversations, 96)
    nano = Reference(checkpoint, tokenizer, conversations, prompts)
    outcome = check_rendering(evidence(nano, made[target]))
    assert outcome.verdict.state is State.PASS, outcome.findings
    numbers = outcome.verdict.numbers
    assert numbers["rendered"] == numbers["prompts"] == len(nano.prompts)
    assert 0 < numbers["turns"] == numbers["prompts_kept"]
    assert outcome.findings == ()


def test_a_suite_without_prompts_shows_nothing(
    reference: Reference, artifacts: dict[str, Path]
) -> None:
    empty = replace(reference, conversations=(), prompts=())
    outcome = check_rendering(evidence(empty, artifacts["Q8_0"]))
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE


def test_of_many_prompts_an_even_sample_is_rendered(
    reference: Reference, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "RENDERED", 2)
    outcome = check_rendering(evidence(reference, artifacts["Q8_0"]))
    assert outcome.verdict.reason == "same ids for 2 of 3 prompts"


def test_a_template_that_was_stopped_thrice_is_not_asked_again(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = rewrite_gguf(
        artifacts["Q8_0"],
        tmp_path / "broken.gguf",
        fields=lambda values: values.update({TOOL_USE: "{{ raise_exception('never') }}"}),
    )
    five = replace(
        reference,
        conversations=(reference.conversations * 2)[:5],
        prompts=(reference.prompts * 2)[:5],
    )
    outcome = check_rendering(evidence(five, path))
    assert outcome.verdict.state is State.FAIL
    assert outcome.verdict.numbers["rendered"] == 3
    assert outcome.verdict.reason == "3 of 3 prompts are not the reference's"


def test_the_choice_between_two_templates_is_seen(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Without tool_use the default renders tools away: no error, other ids."""
    path = rewrite_gguf(
        artifacts["Q8_0"], tmp_path / "broken.gguf", fields=lambda values: values.pop(TOOL_USE)
    )
    outcome = check_rendering(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert "ids differ from place" in outcome.findings[0].message


@pytest.mark.parametrize("model", ["bert", "t5"])
def test_a_vocabulary_of_another_kind_is_no_crash(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, model: str
) -> None:
    path = rewrite_gguf(
        artifacts["Q8_0"],
        tmp_path / "broken.gguf",
        fields=lambda values: values.update({"tokenizer.ggml.model": model}),
    )
    assert check_rendering(evidence(reference, path)).verdict.state is State.FAIL


def test_a_prompt_without_measure_is_not_encoded(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    endless = "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}"
    path = rewrite_gguf(
        artifacts["Q8_0"],
        tmp_path / "broken.gguf",
        fields=lambda values: values.update({TOOL_USE: endless}),
    )
    outcome = check_rendering(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert "it writes more than 2000000 characters" in outcome.findings[0].message


def test_half_of_a_surrogate_pair_is_no_crash(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = rewrite_gguf(
        artifacts["Q8_0"],
        tmp_path / "broken.gguf",
        fields=lambda values: values.update({TOOL_USE: "{{ '\\ud800' }}"}),
    )
    outcome = check_rendering(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert "surrogate" in outcome.findings[0].message


def test_a_folder_without_a_tokenizer(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    (folder / "tokenizer.json").unlink()
    outcome = check_rendering(evidence(reference, folder))
    assert outcome.verdict.state is State.FAIL
    assert "tokenizer.json" in outcome.findings[0].message


def without_bos(folder: Path, post_processor: Any) -> Reference:
    """A checkpoint whose template writes no BOS, one prompt, quantized beside it."""
    write_checkpoint(folder)
    plain = TEMPLATE.replace("{{ bos_token }}", "")
    change_json(folder / "tokenizer_config.json", chat_template=plain)
    if post_processor is not None:
        change_json(folder / "tokenizer.json", post_processor=post_processor)
    quantize(str(folder), folder.parent, ["Q8_0"], name="m")
    checkpoint, tokenizer = Checkpoint.open(folder), Tokenizer.open(folder)
    conversations = (Conversation("c", (USER,)),)
    prompts = make_prompts(checkpoint, tokenizer, conversations, 16)
    return Reference(checkpoint, tokenizer, conversations, prompts)


def test_a_bos_that_only_llama_cpp_adds_is_the_references_own(tmp_path: Path) -> None:
    reference = without_bos(tmp_path / "m", None)
    outcome = check_rendering(evidence(reference, tmp_path / "m-Q8_0.gguf"))
    assert outcome.verdict.state is State.PASS
    assert outcome.verdict.numbers["bos_added"] == 1
    assert "llama.cpp puts a BOS before the prompt" in outcome.findings[0].message


def test_a_bos_that_only_the_artifact_adds_is_its_fault(tmp_path: Path) -> None:
    reference = without_bos(tmp_path / "m", BYTE_LEVEL)
    whole = tmp_path / "m-Q8_0.gguf"
    assert check_rendering(evidence(reference, whole)).verdict.state is State.PASS
    key = "tokenizer.ggml.add_bos_token"
    path = rewrite_gguf(
        whole, tmp_path / "b.gguf", fields=lambda values: values.update({key: True})
    )
    outcome = check_rendering(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert outcome.verdict.numbers["bos_added"] == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m")


def history(folder: Path, template: str, answers: tuple[Answer, ...] = ()) -> Reference:
    """A recorded history, and a second turn after the reference's own reply to the first."""
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": template}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    said = {"role": "assistant", "content": "It is done."}
    conversations = (
        Conversation("recorded", (USER, CALLED, RESULT), (TOOL,)),
        Conversation("c", (USER, CALLED, RESULT), (TOOL,)),
        Conversation("c#2", (USER, CALLED, RESULT, said, USER), (TOOL,), turn=2),
    )
    checkpoint, tokenizer = Checkpoint.open(folder), Tokenizer.open(folder)
    prompts = make_prompts(checkpoint, tokenizer, conversations, 16)
    return Reference(checkpoint, tokenizer, conversations, prompts, answers)


def test_a_stable_template_repeats_prompt_and_reply(folder: Path) -> None:
    ids = Tokenizer.open(folder).encode("It is done.<|im_end|>")
    replies = (answer(""), replace(answer(""), ids=tuple(ids)), answer(""))
    found = measure_stability(history(folder, GOOD, replies), range(3))
    assert (found.turns, found.prompts_kept, found.replies, found.replies_kept) == (3, 3, 1, 1)
    assert found.example is None
    other = (answer(""), replace(answer(""), ids=tuple(ids[1:])), answer(""))
    found = measure_stability(history(folder, GOOD, other), range(3))
    assert (found.prompts_kept, found.replies_kept) == (3, 0)
    assert found.example is not None
    assert found.example.message.startswith("the reply of the turn before it")
    unanswered = measure_stability(history(folder, GOOD), range(3))
    assert (unanswered.turns, unanswered.replies) == (3, 0)


def test_an_earlier_prompt_is_rendered_with_the_same_variables(folder: Path) -> None:
    """Of a template whose system prompt says whether to think, say."""
    reference = history(folder, GOOD.replace("<tools>", "{{ 'think' if thinking }}<tools>", 1))
    assert measure_stability(reference, [0]).prompts_kept == 1
    thinking = replace(reference.conversations[0], template_kwargs={"thinking": True})
    prompts = make_prompts(reference.checkpoint, reference.tokenizer, (thinking,), 16)
    assert prompts[0] != reference.prompts[0]
    reference = replace(reference, conversations=(thinking,), prompts=prompts)
    found = measure_stability(reference, [0])
    assert (found.turns, found.prompts_kept, found.example) == (1, 1, None)


def test_an_unstable_template_is_told_with_numbers_and_fails_nothing(folder: Path) -> None:
    reference = history(folder, DEFECTS["template-not-prefix-stable"])
    quantize(str(folder), folder.parent, ["Q8_0", "FP8_DYNAMIC"], name="q")
    for name in ("q-Q8_0.gguf", "q-FP8_DYNAMIC"):
        outcome = check_rendering(evidence(reference, folder.parent / name))
        assert outcome.verdict.state is State.PASS
        numbers = outcome.verdict.numbers
        assert (numbers["turns"], numbers["prompts_kept"]) == (3, 0)
        (finding,) = outcome.findings
        assert finding.subject == "recorded"
        assert "a server computes the rest again" in finding.message


def drop_bos(values: dict[str, Any]) -> None:
    values[TOOL_USE] = values[TOOL_USE].replace("{{- bos_token }}", "", 1)


@pytest.mark.skipif(BINARY is None, reason="no llama-server: $HERMES_QUANT_LLAMA_SERVER or $PATH")
@pytest.mark.parametrize(
    ("edit", "more"),
    [
        (lambda values: None, 0),
        (drop_bos, 0),
        (lambda values: values.update({ADD_BOS: False}), 0),
        (lambda values: (drop_bos(values), values.update({ADD_BOS: False})), -1),
        (lambda values: values.update({TOOL_USE: "{{ bos_token }}" + values[TOOL_USE]}), 1),
        (lambda values: values.update({ADD_BOS.replace("bos", "eos"): True}), 1),
    ],
)
def test_a_real_llama_server_makes_the_same_prompts(
    made: dict[str, Path], tmp_path: Path, edit: Edit, more: int
) -> None:
    """Told by their lengths, which is what it states; `more` than the reference's."""
    path = rewrite_gguf(made["Q8_0"], tmp_path / "m.gguf", fields=edit)
    checkpoint, tokenizer = Checkpoint.open(NANO), Tokenizer.open(NANO)
    conversations = tuple(c for c in read_suite(None, NANO, 16).conversations if c.tools)
    own = open_prompts(open_artifact(path))
    prompts = tuple(own.ids(conversation) for conversation in conversations)
    own.close()
    expected = make_prompts(checkpoint, tokenizer, conversations, 96)
    assert [len(p) - len(e) for p, e in zip(prompts, expected, strict=True)] == [more] * len(
        prompts
    )
    write_fixture(Reference(checkpoint, tokenizer, conversations, prompts), tmp_path / "f.jsonl")
    with serving(path) as url:
        outcome = replay(tmp_path / "f.jsonl", url)
    assert outcome.verdict.state is State.PASS, outcome


def test_numbers_are_json(reference: Reference, artifacts: dict[str, Path]) -> None:
    json.dumps(dict(check_rendering(evidence(reference, artifacts["Q8_0"])).verdict.numbers))
