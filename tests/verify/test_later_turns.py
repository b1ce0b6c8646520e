"""Several judged turns: one history for both models, results fed to the calls they are for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.conversation import Conversation, Expected, ToolCall, Turn, read_conversations
from convert.errors import ConversationError
from convert.rendering import Tokenizer
from tests.verify.replies import answer
from tests.verify.test_verify import TOOL, write_gate
from verify.artifact import Artifact, Kind
from verify.check import State
from verify.engines import Engine
from verify.engines.scripted import ScriptedEngine
from verify.later_turns import later_turns
from verify.report.contents import Report
from verify.suite import read_suite
from verify.verify import verify

USER = {"role": "user", "content": "go"}
NEXT = {"role": "user", "content": "and then"}


def result(text: str, **more: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, **more}


def calls(*numbers: int) -> tuple[ToolCall, ...]:
    return tuple(ToolCall("f", {"x": number}) for number in numbers)


def wrote(*numbers: int) -> str:
    body = '<tool_call>\n{{"name": "f", "arguments": {{"x": {}}}}}\n</tool_call>'
    return "\n".join(body.format(number) for number in numbers)


def ask(expected: Expected | None, *turns: Turn) -> Conversation:
    return Conversation("c", (USER,), (TOOL,), expected, ("t",), turns)


def test_the_references_own_reply_is_the_history() -> None:
    start = ask(Expected(calls=calls(1)), Turn((result("ok"),), Expected(calls=())), Turn((NEXT,)))
    text = "<think>f</think>Calling.\n" + wrote(1)
    (second,) = later_turns([start], [answer(text)]).conversations
    assert (second.id, second.turn, second.tags, second.tools) == ("c#2", 2, ("t",), (TOOL,))
    assert second.expected == Expected(calls=())
    assert second.messages == (
        USER,
        {
            "role": "assistant", "content": "Calling.", "reasoning_content": "f",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        result("ok"),
    )  # fmt: skip
    found = later_turns([second], [answer("It is ok.")])
    (third,) = found.conversations
    assert (third.id, third.turn, third.then, third.expected) == ("c#3", 3, (), None)
    assert third.messages[-2:] == ({"role": "assistant", "content": "It is ok."}, NEXT)
    assert later_turns([third], [answer("Bye.")]).conversations == ()
    assert found.not_reached == ()


@pytest.mark.parametrize(
    "text",
    [wrote(2), wrote(1, 1), "No.", wrote(1).replace("1", "1.0"), wrote(1).removesuffix(">"),
     "<think>" + wrote(1)],
)  # fmt: skip
def test_a_result_is_fed_only_to_the_call_it_was_recorded_for(text: str) -> None:
    start = ask(Expected(calls=calls(1)), Turn((result("ok"),)), Turn((NEXT,)))
    found = later_turns([start], [answer(text)])
    assert (found.conversations, found.not_reached) == ((), ("c#2", "c#3"))


def test_where_nothing_is_expected_there_must_be_a_result_for_every_call() -> None:
    start = ask(None, Turn((result("a"), result("b"))))
    assert len(later_turns([start], [answer(wrote(7, 8))]).conversations) == 1
    for text in (wrote(7), "No.", wrote(7, 8, 9)):
        assert later_turns([start], [answer(text)]).not_reached == ("c#2",)


def test_words_of_the_user_follow_whatever_was_replied() -> None:
    start = ask(Expected(calls=calls(1)), Turn((NEXT,)))
    for text in ("No.", "<tool_call>broken"):
        (second,) = later_turns([start], [answer(text)]).conversations
        assert second.messages[1] == {"role": "assistant", "content": text}


def test_results_of_parallel_calls_follow_the_order_of_the_reply() -> None:
    recorded = (result("one", tool_call_id="i1"), result("two", tool_call_id="i2"))
    start = ask(Expected(calls=calls(1, 2)), Turn((*recorded, NEXT)))
    (second,) = later_turns([start], [answer(wrote(2, 1))]).conversations
    assert [call["id"] for call in second.messages[1]["tool_calls"]] == ["i2", "i1"]
    assert second.messages[2:] == (recorded[1], recorded[0], NEXT)


def test_an_id_that_a_later_turn_would_take_is_refused(tmp_path: Path) -> None:
    for own, taken in (("c", "c#2"), ("c", "c#3"), ("c#1", "c#1#2")):
        lines = [
            {"id": own, "messages": [USER], "then": [{"messages": [NEXT]}, {"messages": [NEXT]}]},
            {"id": taken, "messages": [USER]},
        ]
        path = tmp_path / "suite.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(ConversationError, match=f"'{taken}' is also that of a later turn"):
            read_suite(path, tmp_path)


def test_turns_of_ids_that_end_in_numbers_are_told_apart() -> None:
    asked = [Conversation(name, (USER,), then=(Turn((NEXT,)),) * 2) for name in ("c", "c#1")]
    found = later_turns(asked, [answer("a"), answer("b")]).conversations
    assert [c.id for c in found] == ["c#2", "c#1#2"]
    found = later_turns(found, [answer("a"), answer("b")]).conversations
    assert [c.id for c in found] == ["c#3", "c#1#3"]


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ([{"messages": []}], r"then\[0\]: messages is empty"),
        ([{}], r"then\[0\]: key 'messages' is missing"),
        ([{"messages": [NEXT], "tools": []}], r"then\[0\]: unknown key 'tools'"),
        ([{"messages": [NEXT], "expected": {}}], r"then\[0\]: expected: none of calls"),
        ([{"messages": [NEXT]}, {"messages": [{"role": "assistant", "content": "a"}]}],
         r"then\[1\]: a message of the assistant"),
        ({}, "then is an object"),
    ],
)  # fmt: skip
def test_turns_that_are_none_are_named_by_their_place(
    tmp_path: Path, then: Any, message: str
) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps({"id": "a", "messages": [USER], "then": then}))
    with pytest.raises(ConversationError, match=message):
        read_conversations(path)


COUNT = 60


def write_suite(folder: Path) -> Path:
    """Two calls one after the other, each answered by a recorded result, then a sentence."""
    lines = []
    for i in range(COUNT):
        steps = [
            {"messages": [result(f"first result {i}")],
             "expected": {"calls": [{"name": "f", "arguments": {"x": i + 1000}}]}},
            {"messages": [result(f"second result {i}")], "expected": {"text": f"done {i}"}},
        ]  # fmt: skip
        lines.append(
            {
                "id": f"p{i}",
                "messages": [{"role": "user", "content": f"begin with {i}"}],
                "tools": [TOOL],
                "expected": {"calls": [{"name": "f", "arguments": {"x": i}}]},
                "then": steps,
            }
        )
    path = folder / "suite.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class Play:
    """A scripted model that goes by the last result in its prompt, and what it was asked."""

    def __init__(self, folder: Path, *, wrong_first: int = 0, wrong_second: int = 0) -> None:
        self.tokenizer = Tokenizer.open(folder)
        self.wrong = {1: wrong_first, 2: wrong_second}
        self.prompts: list[str] = []

    def __call__(self, prompt: Sequence[int]) -> Sequence[int]:
        text = self.tokenizer.decode(prompt)
        self.prompts.append(text)
        i = int(text.split("begin with ")[1].split("<")[0])
        if f"second result {i}" in text:
            said = f"done {i}"
        elif f"first result {i}" in text:
            said = wrote(i + 1000 + (i < self.wrong[2]))
        else:
            said = wrote(i + (i < self.wrong[1]))
        return self.tokenizer.encode(said + "<|im_end|>")


def play(
    reference: Path, artifact: Path, folder: Path, ours: Play, theirs: Play, cache: Path | None
) -> Report:
    def choose(opened: Artifact) -> Engine:
        return ScriptedEngine(ours if opened.kind is Kind.CHECKPOINT else theirs)

    return verify(
        reference, [artifact], suite=write_suite(folder), gate=write_gate(folder),
        open_engine=choose, cache=cache,
    )  # fmt: skip


def test_every_turn_is_judged_on_the_same_history(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = Play(reference_folder), Play(reference_folder, wrong_first=40)
    report = play(reference_folder, artifacts["Q8_0"], tmp_path, ours, theirs, tmp_path / "cache")
    assert sorted(theirs.prompts) == sorted(ours.prompts)
    assert len(theirs.prompts) == 3 * COUNT
    assert (report.suite.used, report.suite.later_turns) == (COUNT, 2 * COUNT)
    assert (report.suite.prompts, report.suite.not_reached) == (3 * COUNT, ())
    by_turn = {stratum.name: stratum for stratum in report.artifacts[0].strata}
    assert list(by_turn) == ["of turn 1", "of turn 2", "of turn 3"]
    assert [(s.due, s.right, s.worse) for s in by_turn.values()] == [
        (COUNT, (COUNT, COUNT - 40), 40), (COUNT, (COUNT, COUNT), 0), (0, (0, 0), 0),
    ]  # fmt: skip
    assert report.state is State.FAIL
    assert report.reference.scores.kinds["text"].hits == COUNT
    again = Play(reference_folder)
    play(reference_folder, artifacts["Q8_0"], tmp_path, again, theirs, tmp_path / "cache")
    assert again.prompts == []


def test_damage_in_a_later_turn_alone_is_found_there(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = Play(reference_folder), Play(reference_folder, wrong_second=40)
    report = play(reference_folder, artifacts["Q8_0"], tmp_path, ours, theirs, None)
    first, second, _ = report.artifacts[0].strata
    assert (first.worse, second.worse) == (0, 40)
    calls = next(o for o in report.artifacts[0].outcomes if o.check == "tool_calls")
    assert calls.verdict.state is State.FAIL
    assert calls.findings[0].subject == "p0#2"


def test_turns_that_the_reference_does_not_reach_are_named_and_asked_of_nobody(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = Play(reference_folder, wrong_first=2), Play(reference_folder)
    report = play(reference_folder, artifacts["Q8_0"], tmp_path, ours, theirs, None)
    assert report.suite.not_reached == ("p0#2", "p0#3", "p1#2", "p1#3")
    assert report.suite.later_turns == 2 * COUNT - 4
    assert len(theirs.prompts) == 3 * COUNT - 4


def test_later_turns_are_rendered_with_the_same_variables() -> None:
    start = replace(ask(None, Turn((NEXT,))), template_kwargs={"thinking": True})
    (second,) = later_turns([start], [answer("Yes.")]).conversations
    assert second.template_kwargs == {"thinking": True}
