"""A reply in pieces: for every way to cut it the same calls in the same order, in linear time."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.conversation import ToolCall
from tests.verify.test_tool_calls import CALL, PIECES, block
from verify.reply_stream import ReplyStream
from verify.tool_calls import parse_reply

TEXTS = [
    block(CALL),
    block(CALL) + "\n" + block('{"name": "g", "arguments": {"é": "\\u00e9 </tool_call> \\" {"}}'),
    "First.\n" + block(CALL) + "\nThen.<|im_end|>",
    "<think>maybe <tool_call></think>\n<scratch_pad>f</scratch_pad> " + block(CALL),
    "<think>" + block(CALL),
    "<thin" + block(CALL),
    block("oops") + block(CALL),
    block(CALL) + '<tool_call>{"name": "h", "arg',
    '<tool_call>{"name": "h", "arg' + block(CALL),
    "<tool_call>" + CALL + block(CALL),
    "so </tool_call> what" + block(CALL),
    block(CALL + "}") + block("[" + CALL + "]") + block(CALL),
    block("'" + CALL) + block(CALL),
    block('{"x": \\' + CALL) + block(CALL),
    block("[" * 70) + block(CALL),
    "<tool_call><tool_call>" + block(CALL),
    "   ",
    "",
]


def stream(pieces: Iterable[str]) -> tuple[list[ToolCall], int]:
    """All calls in order, and how many came before the end; the reply is checked on the way."""
    reader = ReplyStream()
    pieces = list(pieces)
    early = [call for piece in pieces for call in reader.feed(piece)]
    reply, rest = reader.finish()
    assert reply == parse_reply("".join(pieces))
    return [*early, *rest], len(early)


@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_in_two_and_single_characters_give_the_same_calls(text: str) -> None:
    expected = list(parse_reply(text).calls)
    assert stream([text])[0] == expected
    assert stream(text)[0] == expected
    for at in range(len(text) + 1):
        assert stream([text[:at], text[at:]])[0] == expected, text[:at]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *TEXTS]), max_size=20), st.data())
def test_every_text_cut_anywhere_gives_the_same_calls(
    parts: list[str], data: st.DataObject
) -> None:
    text = "".join(parts)
    places = st.lists(st.integers(0, len(text)), max_size=12)
    cuts = sorted(data.draw(places))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert stream(pieces)[0] == list(parse_reply(text).calls)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *TEXTS]), max_size=12))
def test_no_call_is_handed_out_that_more_text_would_undo(parts: list[str]) -> None:
    reader, given_out = ReplyStream(), []
    for part in parts:
        for character in part:
            given_out += reader.feed(character)
    whole = "".join(parts)
    assert given_out == list(parse_reply(whole).calls[: len(given_out)])


def test_a_call_comes_with_its_closing_tag_not_later() -> None:
    reader = ReplyStream()
    text = "Well.\n" + block(CALL)
    assert [reader.feed(character) for character in text[:-1]] == [()] * (len(text) - 1)
    assert reader.feed(text[-1]) == (ToolCall("f", {"x": 1}),)
    assert reader.feed("\n" + block(CALL)[:-1]) == ()
    assert reader.feed(">") == (ToolCall("f", {"x": 1}),)
    assert reader.finish()[1] == ()


def test_calls_of_an_ordinary_reply_all_come_early() -> None:
    text = "<think>" + "hm > " * 200 + "</think>" + "\n".join([block(CALL)] * 20)
    calls, early = stream(text)
    assert len(calls) == early == 20


@pytest.mark.parametrize("unit", [*PIECES, ">", "<tool_call>{}</tool_call>", block(CALL)])
def test_time_is_linear_in_single_characters(unit: str) -> None:
    for start in ("", "<tool_call>", '<tool_call>{"', "<think>"):
        reader = ReplyStream()
        begin = time.process_time()
        for character in start + unit * (5_000 // len(unit)):
            reader.feed(character)
        reader.finish()
        assert time.process_time() - begin < 2, (start, unit)


@pytest.mark.parametrize("text", ["hm " + block(CALL) + "</think>" + block(CALL), block(CALL), ""])
def test_reasoning_that_the_prompt_opened_is_awaited(text: str) -> None:
    for cut in range(len(text) + 1):
        reader = ReplyStream("think")
        early = [call for piece in (text[:cut], text[cut:]) for call in reader.feed(piece)]
        reply, rest = reader.finish()
        assert reply == parse_reply(text, "think")
        assert (*early, *rest) == reply.calls
