"""An OpenAI-compatible server over HTTP: which model it serves, and requests that say what failed.

In: an address, `http://host:port/v1`, or `http://host:port/v1#name` where the server has several
models (what follows `#` never leaves this machine). Out: a `ServedModel`, and JSON objects for JSON
objects.

Every failure is a `ServerError` of one line that names the address and the request. The key, if a
server wants one, comes from `$HERMES_QUANT_API_KEY`; it is sent as a bearer token to that address
alone (redirects are not followed) and taken out of whatever the server says about it. A key inside
the address is refused, because addresses are written into logs and shell histories.

Proxies are taken from the environment as httpx has it, except for this machine's own addresses,
which a proxy cannot reach.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import httpx

from convert.errors import ServerError

API_KEY = "HERMES_QUANT_API_KEY"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FIND_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 10.0
_SHOWN = 300
JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by the name its server gives it; `software` and `version` are the server's own."""

    url: str
    model: str
    software: str
    version: str


def find_model(address: str, *, timeout_s: float = FIND_TIMEOUT_S) -> ServedModel:
    """Ask the server at `address` what it serves. Raises ServerError."""
    url, wanted = _parse(address)
    with Client(url, timeout_s=timeout_s) as client:
        listed = client.get(f"{url}/models").get("data")
        listed = listed if isinstance(listed, list) else []
        models = [entry for entry in listed if isinstance(entry, dict)]
        by_name = {str(entry.get("id")): entry for entry in models}
        if not by_name:
            raise ServerError(f"{url}/models: lists no model; is this an OpenAI-compatible server?")
        known = ", ".join(sorted(by_name))
        if wanted and wanted not in by_name:
            raise ServerError(f"{url}: serves no model {wanted!r}; it serves {known}")
        if not wanted and len(by_name) > 1:
            raise ServerError(f"{url}: serves several models; add #NAME, one of {known}")
        name = wanted or next(iter(by_name))
        software = str(by_name[name].get("owned_by") or "OpenAI-compatible server")
        return ServedModel(url, name, software, _version(client, url))


def _parse(address: str) -> tuple[str, str]:
    """The server's base address and the model's name, empty if none is given."""
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise ServerError(f"{address!r}: not an address: {error}") from error
    if url.userinfo:
        raise ServerError(f"{url.host}: a key or password in the address; put it in ${API_KEY}")
    if not url.host or url.query:
        raise ServerError(f"{address!r}: expected an address like http://host:8000/v1#model")
    return str(url.copy_with(fragment=None)).rstrip("/"), url.fragment


def _version(client: Client, url: str) -> str:
    """What a server tells beside `/v1`: vLLM its version, llama-server its build."""
    for path, key in (("/version", "version"), ("/props", "build_info")):
        try:
            stated = client.get(str(httpx.URL(url).join(path))).get(key)
        except ServerError:
            continue
        if isinstance(stated, str):
            return stated
    return "not stated"


class Client:
    """Requests to one server; may be used from several threads at once."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._key = os.environ.get(API_KEY, "")
        if not self._key.isascii() or not self._key.isprintable():
            raise ServerError(f"${API_KEY}: holds characters that no HTTP header can")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_TIMEOUT_S), pool=None),
            trust_env=httpx.URL(url).host not in LOOPBACK,
        )

    def get(self, where: str) -> JsonObject:
        """The JSON object at an address of the server."""
        return self._request("GET", where, None)

    def post(self, where: str, body: Mapping[str, Any]) -> JsonObject:
        """The JSON object the server answers to `body`."""
        return self._request("POST", where, body)

    def _request(self, method: str, where: str, body: Mapping[str, Any] | None) -> JsonObject:
        try:
            response = self._http.request(method, where, json=body)
        except httpx.TimeoutException as error:
            raise ServerError(f"{where}: no answer within {self._timeout_s:g} s") from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"{where}: cannot be reached: {self._shown(reason)}") from error
        if not response.is_success:
            reason = self._shown(_reason(response))
            raise ServerError(f"{where}: HTTP {response.status_code}: {reason}")
        try:
            content = response.json()
        except (ValueError, RecursionError) as error:
            start = self._shown(repr(response.text[:_SHOWN]))
            raise ServerError(f"{where}: answered with what is not JSON: {start}") from error
        if not isinstance(content, dict):
            raise ServerError(f"{where}: answered with a JSON {type(content).__name__}, no object")
        return content

    def _shown(self, text: str) -> str:
        """A server's words on one line, cut, and without the key."""
        shown = " ".join(text.split())
        return (shown.replace(self._key, "***") if self._key else shown)[:_SHOWN]

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _reason(response: httpx.Response) -> str:
    """What a server says is wrong: `error.message`, as OpenAI has it, or the start of its text."""
    try:
        error = json.loads(response.text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return response.text or response.reason_phrase
