"""What is right and what is wrong, kind by kind: the rows of the check on behaviour.

In: a prompt, what the reference answers to it, and an answer of either model. Out: right, wrong, or
that the row does not apply. One row is one check by itself (`behaviour.py`):

    tool_calls         calls are due: these are made and no others, equal in the gate's tier
    bfcl               the same by BFCL's looser rules, on its prompts only (`bfcl_scoring.py`)
    lost_calls         calls are due: something is called, not a sentence or a refusal in its place
    spurious_calls     no call is due although there are tools: none is made
    malformed_calls    tools are on offer: nothing is written that is almost a call
    schema_valid       the reference calls: no call is made that its function's schema refuses
    json_mode          JSON is due: the reply is one JSON value, valid for its schema
    same_json          JSON is due and the reference writes some: the value is the reference's
    wrong_refusals     nothing says that a refusal is due: none comes
    missing_refusals   a refusal is due: it comes

Where the reference is what is compared with (`same_json`, and calls that no suite states), its own
answer is right by definition, and a drop is the share of prompts at which the artifact differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convert.conversation import Conversation
from quantize.abliteration.refusals import looks_like_refusal
from verify.call_outcomes import LOST, CallOutcome, call_outcome, calls_due, is_right
from verify.call_schemas import are_schemas, are_valid
from verify.equality import Due, Tier
from verify.evidence import Answer
from verify.scoring import is_valid_json, json_of, score


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, what the reference answers to it, and how equal the gate wants calls to be."""

    conversation: Conversation
    ours: Answer
    equality: Tier

    @property
    def due(self) -> Due | None:
        """The calls a right reply makes; None where none can be made."""
        return calls_due(self.conversation, self.ours)

    def outcome(self, due: Due, answer: Answer) -> CallOutcome:
        """What became of the calls of `answer`."""
        return call_outcome(due, answer, self.conversation.tools)


Judge = Callable[[Asked, Answer], bool | None]
"""From what was asked and the answer to judge to right, wrong or None: does not apply. Whether it
applies must not depend on the answer to judge."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One row: the check's name, what is counted in words, and the judge.

    `margin` is the gate's that it is held to: its own unless another is named.
    """

    name: str
    right: str
    judge: Judge
    margin: str = ""
    of_a_benchmark: bool = False

    @property
    def drop(self) -> str:
        """The name of its margin."""
        return self.margin or self.name


def _makes_the_calls(asked: Asked, answer: Answer) -> bool | None:
    due = asked.due
    return is_right(asked.outcome(due, answer), asked.equality) if due else None


def _right_by_bfcl(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    return score(expected, answer).get("bfcl") if expected else None


def _calls_at_all(asked: Asked, answer: Answer) -> bool | None:
    due = asked.due
    return asked.outcome(due, answer) not in LOST if due else None


def _calls_nothing(asked: Asked, answer: Answer) -> bool | None:
    due = asked.due
    if due is None or due:
        return None
    return not (answer.reply.calls or answer.reply.recovered)


def _writes_calls_well(asked: Asked, answer: Answer) -> bool | None:
    return not answer.reply.malformed if asked.conversation.tools else None


def _keeps_to_schemas(asked: Asked, answer: Answer) -> bool | None:
    tools = asked.conversation.tools
    if not (tools and asked.ours.reply.calls and are_schemas(tools)):
        return None
    return are_valid(answer.reply.calls, tools)


def _writes_json(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is None or expected.json is None:
        return None
    return is_valid_json(answer.reply.text, expected.json.schema)


def _writes_the_same_json(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is None or expected.json is None:
        return None
    ours = json_of(asked.ours.reply.text)
    return None if ours is None else json_of(answer.reply.text) == ours


def _does_not_refuse(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is not None and expected.refusal:
        return None
    return not looks_like_refusal(answer.reply.text)


def _refuses(asked: Asked, answer: Answer) -> bool | None:
    expected = asked.conversation.expected
    if expected is None or not expected.refusal:
        return None
    return looks_like_refusal(answer.reply.text)


MEASURES = (
    Measure("tool_calls", "exact calls", _makes_the_calls),
    Measure("bfcl", "right by BFCL's rules", _right_by_bfcl, "tool_calls", of_a_benchmark=True),
    Measure("lost_calls", "calls made where calls are due", _calls_at_all),
    Measure("spurious_calls", "no call where none is due", _calls_nothing),
    Measure("malformed_calls", "nothing malformed", _writes_calls_well),
    Measure("schema_valid", "nothing invalid for its schema", _keeps_to_schemas, "malformed_calls"),
    Measure("json_mode", "valid JSON", _writes_json),
    Measure("same_json", "the reference's JSON", _writes_the_same_json),
    Measure("wrong_refusals", "no refusal where none is due", _does_not_refuse),
    Measure("missing_refusals", "a refusal where one is due", _refuses),
)
