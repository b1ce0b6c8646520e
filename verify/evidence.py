"""What checks are given to look at: the reference, one artifact, and what both answered.

`Answer` is one reply as the engine gave it (ids) and as it reads (text, and the `Reply` with its
tool calls). `Reference` holds what is computed once for any number of artifacts. `Evidence` is one
artifact beside its reference; `answers` is None for checks that run before the engine does.

Conversations, prompts and answers are parallel: index i is the same conversation in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.errors import ConversationError
from convert.rendering import Tokenizer, render, stop_ids
from verify.artifact import Artifact
from verify.engines import (
    ChatEngine,
    Engine,
    EngineInfo,
    Ids,
    OnProgress,
    ServedReply,
    StatedScale,
)
from verify.engines.log_probabilities import Scored
from verify.gate import Thresholds
from verify.tool_calls import Reply, opened_reasoning, parse_reply

_TAG_TOKENS = 16
"""More than any tag and what stands after it at the end of a prompt."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply; `ids` end with the stop token if one came, and `finished` says whether it did."""

    ids: tuple[int, ...]
    text: str
    reply: Reply
    finished: bool


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """One model along the reference's text: see `teacher_forcing.py` for what is scored.

    `scored` is parallel to `conversations`, the indices of those that were taken. `long` has no
    tokens where `no_long` says why they could not be had. Only for the
    reference, some of them once more, whose positions in `scored` are `again`: `alone`, each in a
    batch of its own, and `narrow`, computed in 16 bits (none if the engine cannot), the long text
    too. `answered_alone` and `answered_narrow` are its greedy replies to those, as ids.
    """

    conversations: tuple[int, ...]
    scored: tuple[Scored, ...]
    long: Scored
    again: tuple[int, ...] = ()
    alone: tuple[Scored, ...] = ()
    narrow: tuple[Scored, ...] = ()
    long_narrow: Scored | None = None
    answered_alone: tuple[tuple[int, ...], ...] = ()
    answered_narrow: tuple[tuple[int, ...], ...] = ()
    no_long: str = ""

    @property
    def scored_again(self) -> tuple[Scored, ...]:
        """What `alone` and `narrow` are compared with."""
        return tuple(self.scored[position] for position in self.again)


@dataclass(frozen=True, slots=True)
class Reference:
    """The model the artifacts were made from, the prompts, and what it answers to them.

    `not_reached` names later turns that are not among the conversations (`later_turns.py`).
    `unscored` says why there are no log-probabilities where there should be. Of a model that a
    server answers for, the checkpoint may have no tensors.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    conversations: tuple[Conversation, ...]
    prompts: tuple[Ids, ...]
    answers: tuple[Answer, ...] = ()
    engine: EngineInfo | None = None
    forced: TeacherForced | None = None
    not_reached: tuple[str, ...] = ()
    unscored: str = ""

    @property
    def folder(self) -> Path:
        """Where the reference lies."""
        return self.checkpoint.path

    def opened(self, index: int) -> str:
        """The reasoning that a prompt opens, so that its reply begins inside; else empty."""
        return opened_reasoning(self.tokenizer.decode(self.prompts[index][-_TAG_TOKENS:]))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One artifact beside its reference, and what the gate asks of its type.

    `served` holds a server's own reading of each conversation that has tools, None for the others.
    `forced` holds log-probabilities along the reference's answers, or why there are none; `scales`
    those that the artifact fixes for what is rounded as it runs, and what came along those answers.
    """

    reference: Reference
    artifact: Artifact
    thresholds: Thresholds
    answers: tuple[Answer, ...] | None = None
    served: tuple[ServedReply | None, ...] | None = None
    forced: TeacherForced | str | None = None
    scales: tuple[StatedScale, ...] = ()


def make_prompts(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
) -> tuple[Ids, ...]:
    """Token ids of every conversation, ready for a reply of up to `max_new_tokens`.

    Raises ConversationError for one that ends with the assistant, or does not fit the context.
    """
    room = checkpoint.spec.max_position_embeddings - max_new_tokens
    prompts: list[Ids] = []
    for conversation in conversations:
        if conversation.messages[-1]["role"] == "assistant":
            raise ConversationError(
                f"conversation {conversation.id!r} ends with the assistant; verify needs one that"
                " waits for a reply"
            )
        prompt = render(tokenizer, conversation)
        if not 0 < len(prompt) <= room:
            raise ConversationError(
                f"conversation {conversation.id!r} has {len(prompt)} tokens; with {max_new_tokens}"
                f" for the reply the model's context leaves room for 1 to {room}"
            )
        prompts.append(prompt)
    return tuple(prompts)


def ask(
    engine: Engine,
    reference: Reference,
    *,
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
) -> tuple[Answer, ...]:
    """The engine's answer to every prompt of the reference."""
    stops = stop_ids(reference.checkpoint, reference.tokenizer)
    generated = engine.generate(
        reference.prompts,
        max_new_tokens=max_new_tokens,
        stop_ids=stops,
        on_progress=on_progress,
    )
    return read_answers(reference, generated)


def read_answers(
    reference: Reference, generated: Sequence[Ids], indices: Iterable[int] | None = None
) -> tuple[Answer, ...]:
    """Replies as ids, read; one a prompt, or to the prompts of these `indices`."""
    stops = stop_ids(reference.checkpoint, reference.tokenizer)
    places = range(len(generated)) if indices is None else indices
    return tuple(
        _answer(reference.tokenizer, ids, stops, reference.opened(index))
        for index, ids in zip(places, generated, strict=True)
    )


def ask_served(
    engine: ChatEngine,
    reference: Reference,
    *,
    max_new_tokens: int,
    every: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[ServedReply | None, ...]:
    """What a server makes of every conversation that has tools, or of every one."""
    wanted = [every or bool(conversation.tools) for conversation in reference.conversations]
    asked = list(compress(reference.conversations, wanted))
    replies = iter(engine.chat(asked, max_new_tokens=max_new_tokens, on_progress=on_progress))
    return tuple(next(replies) if due else None for due in wanted)


def _answer(tokenizer: Tokenizer, ids: Sequence[int], stops: frozenset[int], opened: str) -> Answer:
    finished = bool(ids) and ids[-1] in stops
    text = tokenizer.decode(ids[:-1] if finished else ids)
    return Answer(tuple(ids), text, parse_reply(text, opened), finished)
