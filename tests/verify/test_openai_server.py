"""The engine behind an address: ids in and out, greedy whatever the server's defaults, in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from convert.conversation import Conversation, ToolCall
from convert.errors import ServerError, UnsupportedError
from tests.verify.loopback import Answer, Loopback, loopback
from verify.engines import ChatEngine, ServedReply
from verify.engines.openai_client import ServedModel
from verify.engines.openai_server import OpenAIEngine
from verify.engines.openai_wire import wire_messages

STOP = frozenset({260})
Open = Callable[..., OpenAIEngine]
TOOL = {"name": "f", "parameters": {"type": "object"}}
CALL = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"x": 1.0}'}}


@pytest.fixture
def engine() -> Iterator[Open]:
    """Opens engines of a loopback server, and closes them after the test."""
    with ExitStack() as stack:

        def open_one(server: Loopback, **options: Any) -> OpenAIEngine:
            opened = OpenAIEngine(ServedModel(server.url, "hermes", "vllm", "1"), **options)
            stack.callback(opened.close)
            return opened

        yield open_one


def completion(ids: list[int], **more: Any) -> Any:
    usage = {"completion_tokens": len(ids)}
    return {"choices": [{"text": "", "token_ids": ids, **more}], "usage": usage}


def message(content: str | None = None, **more: Any) -> Any:
    usage = {"prompt_tokens": 7}
    return {"choices": [{"message": {"content": content, **more}}], "usage": usage}


def test_replies_come_in_order_however_they_arrive(engine: Open) -> None:
    def respond(_: str, body: Any) -> Answer:
        return Answer(completion([*body["prompt"], 260, 5]), delay_s=0.02 * (body["prompt"][0] % 3))

    seen: list[tuple[int, int]] = []
    prompts = [[number] for number in range(12)]
    with loopback(respond) as server:
        replies = engine(server, batch=3).generate(
            prompts, max_new_tokens=9, stop_ids=STOP, on_progress=lambda *n: seen.append(n)
        )
        assert replies == [[number, 260] for number in range(12)]
        assert seen == [(done, 12) for done in range(1, 13)]
        assert 2 <= server.most_together <= 3
        assert engine(server).generate([], max_new_tokens=9, stop_ids=STOP) == []


def test_a_reply_is_cut_where_every_engine_cuts_it(engine: Open) -> None:
    with loopback(lambda *_: Answer(completion([1, 2, 3, 4]))) as server:
        asked = engine(server).generate([[9]], max_new_tokens=2, stop_ids=STOP)
    assert asked == [[1, 2]]


def test_what_is_sent_leaves_no_default_to_the_server(engine: Open) -> None:
    with loopback(lambda *_: Answer(completion([1]))) as server:
        engine(server).generate([[257, 3]], max_new_tokens=8, stop_ids=frozenset({260, 4}))
    ((path, _, body),) = server.seen
    assert path == "/v1/completions"
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("hermes", [257, 3], 8)
    assert body["stop_token_ids"] == [4, 260]
    assert (body["temperature"], body["repetition_penalty"], body["repeat_penalty"]) == (0, 1, 1)
    assert (body["presence_penalty"], body["frequency_penalty"]) == (0, 0)


@pytest.mark.parametrize("verbose", [{"tokens": [5, 260]}, None])
def test_llama_server_names_ids_where_vllm_does_not(engine: Open, verbose: Any) -> None:
    tokens = [{"id": 5, "token": "a", "logprob": -0.1}, {"id": 260, "token": "", "logprob": -0.2}]
    if verbose:
        del tokens[0]  # as for a token whose bytes end inside a character
    answer = {
        "choices": [{"text": "a", "logprobs": {"content": tokens}}],
        "usage": {"completion_tokens": 2},
        "__verbose": verbose,
    }
    with loopback(lambda *_: Answer(answer)) as server:
        assert engine(server).generate([[1]], max_new_tokens=4, stop_ids=STOP) == [[5, 260]]


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a"},
        {"text": "a", "logprobs": None},
        {"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-0.1]}},
        {"text": "a", "logprobs": {"content": [{"token": "a", "logprob": -0.1}]}},
    ],
)
def test_text_alone_is_not_encoded_again(engine: Open, choice: Any) -> None:
    with loopback(lambda *_: Answer({"choices": [choice]})) as server:
        asked = engine(server)
        with pytest.raises(UnsupportedError, match="gives no token ids"):
            asked.generate([[1]], max_new_tokens=4, stop_ids=STOP)


def test_an_id_that_was_left_out_is_noticed(engine: Open) -> None:
    answer = {**completion([5]), "usage": {"completion_tokens": 2}}
    with loopback(lambda *_: Answer(answer)) as server:
        asked = engine(server)
        with pytest.raises(UnsupportedError, match="counts 2 tokens in a reply and names 1"):
            asked.generate([[1]], max_new_tokens=4, stop_ids=STOP)


@pytest.mark.parametrize("answer", [{}, {"choices": []}, {"choices": [1]}, completion(["a"])])  # type: ignore[list-item]
def test_an_answer_of_another_shape(engine: Open, answer: Any) -> None:
    with loopback(lambda *_: Answer(answer)) as server:
        with pytest.raises(ServerError, match=r"without choices|no numbers"):
            engine(server).generate([[1]], max_new_tokens=4, stop_ids=STOP)
        if "choices" in answer:
            with pytest.raises(ServerError, match="without"):
                engine(server).chat([conversation()], max_new_tokens=4)


def test_the_first_refusal_ends_the_rest(engine: Open) -> None:
    def respond(_: str, body: Any) -> Answer:
        if body["prompt"] == [0]:
            return Answer({"error": {"message": "The model is gone."}}, 500)
        return Answer(completion([1]), delay_s=0.05)

    with loopback(respond) as server:
        with pytest.raises(ServerError, match=r"HTTP 500: The model is gone\."):
            engine(server, batch=2).generate(
                [[number] for number in range(40)], max_new_tokens=4, stop_ids=STOP
            )
        assert len(server.seen) < 10


def conversation(*more: Any, tools: Any = (TOOL,)) -> Conversation:
    return Conversation("c", ({"role": "user", "content": "hi"}, *more), tuple(tools))


def test_calls_are_taken_as_the_server_parsed_them(engine: Open) -> None:
    with loopback(lambda *_: Answer(message("ok", tool_calls=[CALL]))) as server:
        asked = engine(server)
        assert isinstance(asked, ChatEngine)
        (reply,) = asked.chat([conversation()], max_new_tokens=4)
    assert reply == ServedReply((ToolCall("f", {"x": 1.0}),), (), "ok", 7)
    ((path, _, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert body["tools"] == [{"type": "function", "function": TOOL}]
    assert body["tool_choice"] == "auto"
    assert (body["temperature"], body["repetition_penalty"]) == (0, 1)


@pytest.mark.parametrize("answer", [message("no"), message("no", tool_calls=None)])
def test_no_call_is_no_call(engine: Open, answer: Any) -> None:
    with loopback(lambda *_: Answer(answer)) as server:
        (reply,) = engine(server).chat([conversation(tools=())], max_new_tokens=4)
    assert reply == ServedReply((), (), "no", 7)
    assert "tools" not in server.seen[0][2]


@pytest.mark.parametrize("arguments", ['{"x": ', "[1]", '{"x": 1, "x": 2}', {"x": 1}, None])
def test_a_call_the_server_garbled_is_malformed_and_not_lost(engine: Open, arguments: Any) -> None:
    garbled = {**CALL, "function": {"name": "f", "arguments": arguments}}
    with loopback(lambda *_: Answer(message(tool_calls=[garbled, CALL]))) as server:
        (reply,) = engine(server).chat([conversation()], max_new_tokens=4)
    assert reply.calls == (ToolCall("f", {"x": 1.0}),)
    assert len(reply.malformed) == 1


@pytest.mark.parametrize("stated", [5, "f", {"name": "f"}])
def test_tool_calls_that_are_no_list_are_malformed(engine: Open, stated: Any) -> None:
    with loopback(lambda *_: Answer(message(tool_calls=stated))) as server:
        (reply,) = engine(server).chat([conversation()], max_new_tokens=4)
    assert (reply.calls, len(reply.malformed)) == ((), 1)


def test_recorded_calls_get_the_ids_that_servers_insist_on() -> None:
    called = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "é"}}, CALL]}
    results = [{"role": "tool", "name": "f", "content": text} for text in ("1", "2")]
    sent = list(wire_messages(conversation(called, *results)))
    first, second = sent[1]["tool_calls"]
    assert first["type"] == "function"
    assert first["function"] == {
        "name": "f",
        "arguments": json.dumps({"x": "é"}, ensure_ascii=False),
    }
    assert (first["id"], second["id"]) == ("call_1_0", "x")
    assert [result["tool_call_id"] for result in sent[2:]] == ["call_1_0", "x"]
    assert "tool_call_id" not in results[0]


def test_variables_of_the_template_and_reasoning_go_through(engine: Open) -> None:
    given = replace(conversation(), template_kwargs={"thinking": True})
    cut = message("<b>", reasoning_content="hm")
    cut["choices"][0]["finish_reason"] = "length"
    with loopback(lambda *_: Answer(cut)) as server:
        asked = engine(server)
        (reply,) = asked.chat([given], max_new_tokens=4)
        asked.chat([conversation()], max_new_tokens=4)
    assert server.seen[0][2]["chat_template_kwargs"] == {"thinking": True}
    assert "chat_template_kwargs" not in server.seen[1][2]
    assert (reply.reasoning, reply.finished, reply.text) == ("hm", False, "<b>")
