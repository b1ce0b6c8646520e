"""Prompts to measure with: two files of conversations, rendered once and kept with the measurement.

In: the refused and the harmless conversations (the project's one JSONL schema), and optionally a
file of tools. Out: `Prompt`s, each with its ids. A conversation that brings tools belongs to the
variant "tools", any other to "plain"; with a file of tools every plain one is rendered a second
time with these on offer, because Hermes' `tool_use` template writes another system prompt and the
refusal projection moves with it. Every fourth conversation is kept for choosing (`validation`).

The positions that are measured are the tokens that follow the user's text, the same in all
prompts: their longest common ending. Ids come from the template as it is, which writes the BOS
itself; two of them are an error (`convert/rendering.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convert.conversation import Conversation, parse_conversation, read_conversations
from convert.errors import ConversationError, InputError
from convert.rendering import Tokenizer, render

REFUSED, HARMLESS = "refused", "harmless"
PLAIN, TOOLS = "plain", "tools"
MAX_POSITIONS = 16
VALIDATION_EVERY = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """One rendered conversation; `refuses` is what the model did, None where it was not asked."""

    id: str
    kind: str
    variant: str
    validation: bool
    ids: tuple[int, ...]
    refuses: bool | None = None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts, the tokens they share at their end, and the digests of where they are from."""

    prompts: tuple[Prompt, ...]
    positions: tuple[str, ...]
    sha256: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PromptSet:
        """What `to_dict` gave."""
        prompts = tuple(Prompt(**{**p, "ids": tuple(p["ids"])}) for p in data["prompts"])
        return cls(prompts, tuple(data["positions"]), data["sha256"])

    def of(self, **wanted: object) -> tuple[Prompt, ...]:
        """The prompts whose fields have these values."""
        return tuple(
            p for p in self.prompts if all(getattr(p, key) == v for key, v in wanted.items())
        )


def read_prompts(
    tokenizer: Tokenizer, refused: Path, harmless: Path, tools: Path | None = None
) -> PromptSet:
    """Read and render both files."""
    offered = _read_tools(tools) if tools else ()
    prompts: list[Prompt] = []
    for kind, path in ((REFUSED, refused), (HARMLESS, harmless)):
        for number, conversation in enumerate(read_conversations(path)):
            validation = number % VALIDATION_EVERY == VALIDATION_EVERY - 1
            own = TOOLS if conversation.tools else PLAIN
            prompts.append(_prompt(tokenizer, conversation, kind, own, validation))
            if offered and not conversation.tools:
                with_tools = replace(conversation, tools=offered)
                prompts.append(_prompt(tokenizer, with_tools, kind, TOOLS, validation))
    shared = _common_ending([p.ids for p in prompts])
    if not shared:
        raise ConversationError(
            f"{refused}, {harmless}: the prompts do not end alike; every conversation must end with"
            " the user's message, so that the template's opening of the reply follows it"
        )
    files = {REFUSED: refused, HARMLESS: harmless, **({TOOLS: tools} if tools else {})}
    digests = {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()}
    digests["templates"] = hashlib.sha256(repr(tokenizer.templates).encode()).hexdigest()
    return PromptSet(tuple(prompts), tuple(tokenizer.decode([token]) for token in shared), digests)


def _prompt(
    tokenizer: Tokenizer, conversation: Conversation, kind: str, variant: str, validation: bool
) -> Prompt:
    ids = tuple(render(tokenizer, conversation))
    return Prompt(conversation.id, kind, variant, validation, ids)


def _common_ending(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The last tokens that all prompts share, at most MAX_POSITIONS; never all of a prompt."""
    shortest = min(len(ids) for ids in prompts)
    first, count = prompts[0], 0
    while count < min(MAX_POSITIONS, shortest - 1):
        if any(ids[-1 - count] != first[-1 - count] for ids in prompts):
            break
        count += 1
    return tuple(first[len(first) - count :])


def _read_tools(path: Path) -> tuple[dict[str, Any], ...]:
    """A JSON array of tools, checked as those of a conversation are."""
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a JSON array of tools: {error}") from error
    message = {"role": "user", "content": "-"}
    record = {"id": "tools", "messages": [message], "tools": tools}
    return parse_conversation(record, str(path)).tools
