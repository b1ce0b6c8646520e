"""Which model a server has, and every way a request can fail, each in one line that names it."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from convert.errors import ServerError
from tests.verify.loopback import Answer, Respond, loopback
from verify.engines.openai_client import API_KEY, Client, ServedModel, find_model

SECRET = "sk-do-not-show-7f3a"


def models(*names: str, software: str | None = "vllm") -> Any:
    return {"object": "list", "data": [{"id": name, "owned_by": software} for name in names]}


def serving(*names: str, **answers: Answer) -> Respond:
    """A server of these models; other paths answer 404 unless given by their last word."""

    def respond(path: str, body: Any) -> Answer:
        if path == "/v1/models":
            return Answer(models(*names))
        missing = Answer({"error": {"message": "no such thing"}}, 404)
        return answers.get(path.rsplit("/", 1)[-1], missing)

    return respond


def one_line(error: pytest.ExceptionInfo[ServerError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


def test_the_only_model_needs_no_name_and_several_need_one() -> None:
    with loopback(serving("hermes", version=Answer({"version": "0.32.0"}))) as server:
        found = find_model(server.url)
        assert found == ServedModel(server.url, "hermes", "vllm", "0.32.0")
        assert find_model(server.url + "/#hermes") == found
        with pytest.raises(ServerError, match=r"serves no model 'hermès'; it serves hermes"):
            find_model(server.url + "#hermès")
        assert all("#" not in path and "%" not in path for path, _, _ in server.seen)
    with loopback(serving("a/b", "c")) as server:
        with pytest.raises(ServerError, match="several models; add #NAME, one of a/b, c"):
            find_model(server.url)
        assert find_model(server.url + "#a/b").model == "a/b"
        assert find_model(server.url + "#c").version == "not stated"


@pytest.mark.parametrize(
    "listed", [{}, {"data": []}, {"data": None}, {"data": 5}, {"data": ["hermes"]}]
)
def test_a_server_without_models_is_none_of_ours(listed: Any) -> None:
    with loopback(lambda *_: Answer(listed)) as server, pytest.raises(ServerError) as error:
        find_model(server.url)
    assert "lists no model" in one_line(error)


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(ServerError) as error:
            find_model(address)
    assert one_line(error).startswith(f"{address}/models: cannot be reached: ")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"http://user:{SECRET}@localhost:1/v1", rf"localhost: a key or password .*\${API_KEY}"),
        ("http://", "expected an address like"),
        ("http://localhost:1/v1?key=1", "expected an address like"),
        ("http://localhost:port/v1", "not an address"),
    ],
)
def test_an_address_that_cannot_be_used(address: str, message: str) -> None:
    with pytest.raises(ServerError, match=message) as error:
        find_model(address)
    one_line(error)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer({"error": {"message": "too\nlong"}}, 400), "HTTP 400: too long"),
        (Answer({"error": "no such thing"}, 404), "HTTP 404: no such thing"),
        (Answer({"detail": "Not Found"}, 404), 'HTTP 404: {"detail": "Not Found"}'),
        (Answer(b"", 503), "HTTP 503: Service Unavailable"),
        (Answer(b"<html>bad gateway</html>", 502), "HTTP 502: <html>bad gateway</html>"),
        (Answer(b"", 307, headers={"location": "http://127.0.0.1:1/"}), "HTTP 307"),
        (Answer(b"<html>"), "answered with what is not JSON: '<html>'"),
        (Answer(b'{"choices": ['), "answered with what is not JSON"),
        (Answer(b"[" * 100_000), "answered with what is not JSON"),
        (Answer(b"\xff\xfe{}\x00"), "answered with what is not JSON"),
        (Answer(["a"]), "answered with a JSON list, no object"),
    ],
)
def test_an_answer_that_is_none(answer: Answer, message: str) -> None:
    with loopback(lambda *_: answer) as server, Client(server.url, timeout_s=10) as client:
        with pytest.raises(ServerError) as error:
            client.post(f"{server.url}/completions", {"prompt": [1]})
        assert one_line(error).startswith(f"{server.url}/completions: {message}")


def test_a_server_that_takes_too_long() -> None:
    with loopback(lambda *_: Answer({}, delay_s=0.5)) as server:
        client = Client(server.url, timeout_s=0.1)
        with pytest.raises(ServerError, match=r"no answer within 0\.1 s"):
            client.get(f"{server.url}/models")
        client.close()


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, SECRET)
    refused = Answer({"error": {"message": f"wrong key {SECRET}, go away"}}, 401)
    with loopback(lambda *_: refused) as server:
        with pytest.raises(ServerError, match=r"HTTP 401: wrong key \*\*\*, go away") as error:
            find_model(server.url)
        assert server.seen[0][1]["Authorization"] == f"Bearer {SECRET}"
    one_line(error)
    monkeypatch.setenv(API_KEY, SECRET + "\n")
    with pytest.raises(ServerError, match="no HTTP header can") as error:
        find_model("http://localhost:1/v1")
    one_line(error)
    monkeypatch.delenv(API_KEY)
    with loopback(serving("hermes")) as server:
        find_model(server.url)
        assert not [headers for _, headers, _ in server.seen if "Authorization" in headers]


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with loopback(serving("hermes")) as server:
        assert find_model(server.url).model == "hermes"
