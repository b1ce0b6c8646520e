"""Prompt-token counts that anyone can replay against a deployed endpoint, without any weights.

In: the reference's conversations and prompts. Out: `prompt-tokens.jsonl`, a request a line, ready
to be sent, with the number of tokens that a right template and tokenizer make of it:

    {"id": "weather-1", "request": {"messages": [...], "tools": [...], "max_tokens": 1, ...},
     "prompt_tokens": 214, "ids_sha256": "..."}

Replaying sends every request to `/chat/completions` and compares `usage.prompt_tokens`. A template
that was edited or replaced, tools that are not rendered, a second BOS and another tokenizer show in
the count; weights do not, and a text of other tokens of the same number does not either. The digest
is over the ids as a JSON list, for servers that can name them. (The idea is Moonshot's
Kimi-Vendor-Verifier's.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from convert.conversation import Conversation
from convert.errors import InputError
from convert.staging import write_whole
from verify.check import Finding, Outcome, State, Verdict
from verify.engines import Ids
from verify.engines.openai_client import Client, JsonObject, ServedModel, find_model
from verify.engines.openai_wire import count_of, wire_messages, wire_tool
from verify.evidence import Reference
from verify.suite import spread

NAME = "prompt_tokens"
FILE_NAME = "prompt-tokens.jsonl"
PROMPTS = 200
TIMEOUT_S = 120.0
_AT_ONCE = 8
_FINDINGS = 20


def write_fixture(reference: Reference, path: Path) -> None:
    """Write at most PROMPTS requests, evenly spread over the suite."""
    chosen = spread(len(reference.prompts), PROMPTS)
    lines = [_line(reference.conversations[i], reference.prompts[i]) for i in chosen]
    try:
        write_whole(path, "".join(lines).encode())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _line(conversation: Conversation, prompt: Ids) -> str:
    request: JsonObject = {"messages": list(wire_messages(conversation))}
    if conversation.tools:
        request["tools"] = [wire_tool(tool) for tool in conversation.tools]
    if conversation.template_kwargs:
        request["chat_template_kwargs"] = dict(conversation.template_kwargs)
    entry = {
        "id": conversation.id,
        "request": {**request, "max_tokens": 1, "temperature": 0},
        "prompt_tokens": len(prompt),
        "ids_sha256": hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest(),
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def replay(fixture: Path, address: str) -> Outcome:
    """Send every request of a fixture to a server and compare the counts. Raises ServerError."""
    entries = list(_entries(fixture))
    served = find_model(address)
    with Client(served.url, timeout_s=TIMEOUT_S) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        counted = list(pool.map(lambda entry: _count(client, served, entry), entries))
    pairs = [(e["id"], e["prompt_tokens"], c) for e, c in zip(entries, counted, strict=True)]
    differ = [pair for pair in pairs if pair[2] not in (None, pair[1])]
    silent = sum(found is None for found in counted)
    numbers = {"requests": len(pairs), "differing": len(differ), "not_stated": silent}
    findings = tuple(
        Finding(name, f"{found} tokens, expected {expected}") for name, expected, found in differ
    )
    if differ:
        reason = (
            f"{len(differ)} of {len(pairs)} prompts have another number of tokens: another"
            " template or tokenizer"
        )
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), findings[:_FINDINGS])
    if silent:
        reason = f"{silent} of {len(pairs)} answers do not state usage.prompt_tokens"
        return Outcome(NAME, Verdict(State.NOT_ENOUGH_EVIDENCE, reason, numbers))
    reason = f"all {len(pairs)} prompts have the expected number of tokens"
    return Outcome(NAME, Verdict(State.PASS, reason, numbers))


def _entries(fixture: Path) -> Iterator[JsonObject]:
    try:
        lines = fixture.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{fixture}: cannot be read: {error}") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{fixture}: no request in it")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
            request, tokens = entry["request"], entry["prompt_tokens"]
            if not isinstance(request, dict) or type(tokens) is not int:
                raise TypeError("a request and a whole number of tokens were expected")
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{fixture}:{number}: not a line of {FILE_NAME} as verify writes it: {error}"
            ) from error
        yield {"id": str(entry.get("id", number)), "request": request, "prompt_tokens": tokens}


def _count(client: Client, served: ServedModel, entry: JsonObject) -> int | None:
    body = {"model": served.model, **entry["request"]}
    return count_of(client.post(f"{served.url}/chat/completions", body), "prompt_tokens")
