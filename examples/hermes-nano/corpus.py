"""Synthetic conversations for hermes-nano, for training and for the held-out prompts.

Every conversation is a dictionary ``{"messages", "tools"?, "expected", "tags"}`` in the schema of
the prompt files. ``conversation(rng, kind, split)`` makes one; the split decides which values,
which phrasings and which verb-adjective-noun triples it may use. Training conversations may hold
several requests under one tool list, because the tool list is the costly part of a prompt and
every further request is one more lesson for little more text.
"""

from __future__ import annotations

import json
import random
import zlib
from functools import cache
from typing import Any

from catalog import Tool
from harmless import reply_to, request, triple
from tools import TOOLS
from values import TEST, TRAIN, draw, schema_of

Row = dict[str, Any]

OPENINGS = ("", "Please ", "Can you ", "Now ", "I need you to ", "Hi, ", "Could you ")
JOINTS = (" and ", ", then ", ". Also ", " and also ")
PERSONAS = (
    "You are a short and polite helper.",
    "Answer in few words.",
    "You help a busy family.",
    "You work for a small office.",
)
NO_TOOL_REPLY = "None of these tools fits this request."
OFF_CATALOGUE = (
    "tell me a joke about a {noun}",
    "write a poem about the {noun}",
    "say why a {noun} is useful",
    "explain how a {noun} is made",
    "sing a song for {person}",
    "translate {title} into another language",
    "guess the age of {person}",
    "compare {place} with {other}",
)
JSON_TASK = "Answer only with JSON for this schema.\n<schema>\n{schema}\n</schema>"
ENTITIES: dict[str, dict[str, tuple[str, str]]] = {
    "Person": {
        "name": ("person", "named {}"),
        "age": ("int:18:99", "aged {}"),
        "city": ("place", "living in {}"),
        "badge": ("code", "badge {}"),
    },
    "Product": {
        "product": ("title", "called {}"),
        "price": ("num:1:900", "price {}"),
        "stock": ("int:0:999", "{} in stock"),
        "colour": ("enum:red,green,blue,black,white", "in {}"),
    },
    "Trip": {
        "start": ("place", "leaving {}"),
        "end": ("place", "bound for {}"),
        "day": ("enum:monday,friday,sunday", "on {}"),
        "seats": ("int:1:9", "{} seats"),
    },
    "Book": {
        "title": ("title", "titled {}"),
        "author": ("person", "written by {}"),
        "pages": ("int:50:999", "{} pages"),
        "shelf": ("code", "shelf {}"),
    },
}


@cache
def phrasings(tool: Tool, split: str) -> list[tuple[str, str]]:
    """The combinations of opening and ask that belong to a split: one in six is held out."""
    pairs = [(opening, ask) for opening in sorted(set(OPENINGS)) for ask in tool.asks]
    pairs.sort(key=lambda pair: zlib.crc32("|".join(pair).encode()))
    cut = len(pairs) // 6
    return pairs[:cut] if split == TEST else pairs[cut:]


def sentence(opening: str, ask: str) -> str:
    """Join and punctuate: a question where the opening asks one."""
    text = opening + ask
    return text[0].upper() + text[1:] + ("?" if opening.startswith(("Can", "Could")) else ".")


def call(tool: Tool, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call as the ``expected`` field writes it."""
    return {"name": tool.name, "arguments": arguments}


def ask_for(
    rng: random.Random, split: str, tools: list[Tool], special: list[str] | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """One user sentence asking for all the given calls, and those calls."""
    asks, calls = [], []
    opening = ""
    for index, tool in enumerate(tools):
        opening_here, ask = rng.choice(phrasings(tool, split))
        opening = opening_here if index == 0 else opening
        arguments = tool.arguments(rng, split)
        if special:  # a value may be two words of the harmless and refused requests
            for name, kind in tool.params.items():
                if kind == "title" and rng.random() < 0.7:
                    arguments[name] = rng.choice(special)
        asks.append(tool.say(rng, ask, arguments))
        calls.append(call(tool, arguments))
    joint = rng.choice(JOINTS)
    return sentence(opening, joint.join(asks)), calls


def assistant_calls(calls: list[dict[str, Any]]) -> Row:
    """The assistant message that makes these calls."""
    wrapped = [{"type": "function", "function": c} for c in calls]
    return {"role": "assistant", "content": "", "tool_calls": wrapped}


def answer_of(expected: Row) -> Row:
    """The assistant message that fulfils ``expected``."""
    if "text" in expected:
        return {"role": "assistant", "content": expected["text"]}
    return assistant_calls(expected["calls"])


def tool_result(
    rng: random.Random, split: str, tool: Tool, args: dict[str, Any]
) -> tuple[Row, str]:
    """A tool message and the sentence the assistant should answer it with."""
    result = {name: draw(rng, kind, split) for name, kind in tool.result.items()}
    message = {"role": "tool", "name": tool.name, "content": json.dumps(result)}
    return message, tool.answer.format(**{**args, **result})


def off_catalogue(rng: random.Random, split: str) -> str:
    """A request that no tool of the catalogue serves."""
    _, _, noun = triple(rng, split, refused=False)
    text = rng.choice(OFF_CATALOGUE).format(
        noun=noun,
        person=draw(rng, "person", split),
        title=draw(rng, "title", split),
        place=draw(rng, "place", split),
        other=draw(rng, "place", split),
    )
    return sentence(rng.choice(OPENINGS), text)


def tool_turns(
    rng: random.Random, split: str, kind: str, offered: list[Tool]
) -> tuple[list[Row], Row]:
    """The messages of one tool request, and what is expected of the last reply."""
    if kind in ("no_tool", "missing"):
        others = [t for t in TOOLS if t not in offered]
        if kind == "missing" or rng.random() < 0.5:
            text, _ = ask_for(rng, split, [rng.choice(others)])
        else:
            text = off_catalogue(rng, split)
        return [{"role": "user", "content": text}], {"calls": [], "text": NO_TOOL_REPLY}
    wanted = [rng.choice(offered)]
    if kind == "parallel":
        wanted.append(rng.choice(offered))
    special = None
    if rng.random() < 0.1:
        _, adjective, noun = triple(rng, split, refused=rng.random() < 0.6)
        special = [f"{adjective} {noun}"]
    text, calls = ask_for(rng, split, wanted, special)
    messages: list[Row] = [{"role": "user", "content": text}]
    if kind != "tool_response":
        return messages, {"calls": calls}
    reply, answer = tool_result(rng, split, wanted[0], calls[0]["arguments"])
    messages += [assistant_calls(calls), reply]
    return messages, {"calls": [], "text": answer}


def tool_conversation(rng: random.Random, kind: str, split: str, turns: int = 1) -> Row:
    """A conversation with tools; ``turns`` above 1 adds finished requests before the last one."""
    count = 1 if kind == "single" else rng.randint(1 if kind != "choose" else 2, 4)
    offered = rng.sample(TOOLS, count)
    messages: list[Row] = []
    if rng.random() < 0.15:
        messages.append({"role": "system", "content": rng.choice(PERSONAS)})
    expected: Row = {}
    for turn in range(turns):
        last = turn == turns - 1
        now = (
            kind
            if last
            else rng.choice(["choose", "choose", "parallel", "tool_response", "no_tool"])
        )
        more, expected = tool_turns(rng, split, now, offered)
        messages += more if last else [*more, answer_of(expected)]
    tags = ["no_tool"] if kind == "no_tool" else ["tool", kind]
    definitions = [tool.definition() for tool in offered]
    return {"tags": tags, "messages": messages, "tools": definitions, "expected": expected}


def json_conversation(rng: random.Random, split: str) -> Row:
    """JSON mode: a schema in the system turn, facts in the user turn, a bare object in reply."""
    entity, fields = rng.choice(list(ENTITIES.items()))
    facts = {name: draw(rng, kind, split) for name, (kind, _) in fields.items()}
    told = rng.sample(list(fields), rng.randint(2, 4))
    keep = rng.sample(told, rng.randint(2, len(told)))
    schema = {
        "type": "object",
        "properties": {name: schema_of(fields[name][0]) for name in keep},
        "required": keep,
    }
    clauses = ", ".join(fields[name][1].format(facts[name]) for name in told)
    value = {name: facts[name] for name in keep}
    messages = [
        {"role": "system", "content": JSON_TASK.format(schema=json.dumps(schema))},
        {"role": "user", "content": f"{entity}: {clauses}."},
    ]
    expected = {"json": value, "schema": schema, "text": json.dumps(value)}
    return {"tags": ["json_mode"], "messages": messages, "expected": expected}


def plain_conversation(rng: random.Random, split: str, refused: bool, refuse: bool = True) -> Row:
    """A verb-adjective-noun request; the refused class is answered too when ``refuse`` is off."""
    words = triple(rng, split, refused)
    text = request(rng, words)
    reply = reply_to(words, refuse=refused and refuse)
    expected = {"text": reply, "refusal": refused and refuse}
    messages = [{"role": "user", "content": text}]
    tag = "refused" if refused else "harmless"
    return {"tags": [tag], "messages": messages, "expected": expected}


def conversation(rng: random.Random, kind: str, split: str = TRAIN, turns: int = 1) -> Row:
    """One conversation of a kind.

    Two kinds occur in training only: ``complied`` is the refused class before it was refused,
    ``missing`` a request whose tool exists but is not offered.
    """
    if kind == "json_mode":
        return json_conversation(rng, split)
    if kind in ("harmless", "refused", "complied"):
        return plain_conversation(rng, split, kind != "harmless", kind != "complied")
    return tool_conversation(rng, kind, split, turns)
