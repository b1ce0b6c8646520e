"""A suite of every kind of prompt, and answers to it: right ones, and ways to get them wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convert.conversation import Conversation, Expected, ExpectedJson, ToolCall
from verify.artifact import Artifact, Kind
from verify.evidence import Answer, Evidence, Reference
from verify.gate import read_gate
from verify.tool_calls import parse_reply

PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer"}}}
TOOLS = ({"type": "function", "function": {"name": "f", "parameters": PARAMETERS}},)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
PER_KIND = 100
Edit = Callable[[str, str], str]
"""From a conversation's id and the right reply to a reply."""


def call(n: int) -> str:
    body = json.dumps({"name": "f", "arguments": {"n": n, "unit": "mm"}})
    return f"<tool_call>\n{body}\n</tool_call>"


def suite() -> list[tuple[Conversation, str]]:
    """Conversations and the right reply to each: tool, idle, json, harmless and refused ones."""
    found: list[tuple[Conversation, str]] = []
    for i in range(PER_KIND):
        n = 1000 + 37 * i
        ask = ({"role": "user", "content": f"number {n}"},)
        calls = (ToolCall("f", {"n": n, "unit": "mm"}),)
        value = ExpectedJson({"n": n}, SCHEMA)
        rows = {
            "tool": (TOOLS, Expected(calls=calls), call(n)),
            "idle": (TOOLS, Expected(calls=()), "No tool fits."),
            "json": ((), Expected(json=value), json.dumps({"n": n})),
            "harmless": ((), Expected(refusal=False), f"Of course: {n}."),
            "refused": ((), Expected(refusal=True), "I can't do that."),
        }
        for kind, (tools, expected, reply) in rows.items():
            found.append((Conversation(f"{kind}-{i}", ask, tools, expected, (kind,)), reply))
    return found


def answer(text: str) -> Answer:
    return Answer(
        tuple(text.encode("utf-8", "surrogatepass")), text, parse_reply(text), finished=True
    )


def always(reply: str, kind: str) -> Edit:
    """This reply to every prompt of a kind."""
    return lambda name, right: reply if name.startswith(kind) else right


def changed(old: str, new: str, kind: str = "") -> Edit:
    """The right reply with one text for another."""
    return lambda name, right: right.replace(old, new) if name.startswith(kind) else right


def digits_confused(name: str, right: str) -> str:
    """Sevens read as ones, in calls only."""
    return right.replace("7", "1") if name.startswith("tool") else right


def evidence_of(reference: Reference, edit: Edit, first: Edit = lambda _, right: right) -> Evidence:
    """A reference that answers right (or by `first`) and an artifact that answers by `edit`."""
    rows = suite()
    conversations = tuple(conversation for conversation, _ in rows)
    ours = tuple(answer(first(c.id, right)) for c, right in rows)
    theirs = tuple(answer(edit(c.id, right)) for c, right in rows)
    base = replace(reference, conversations=conversations, prompts=(), answers=ours)
    artifact = Artifact(Path("m-Q5_K_M.gguf"), Kind.GGUF, "Q5_K_M", 1000)
    return Evidence(base, artifact, read_gate(None).of("Q4_K_M"), theirs)
