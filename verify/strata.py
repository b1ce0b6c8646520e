"""Replies of different kinds counted apart: with reasoning and without, and turn by turn.

In: conversations and the answers of both models. Out: two `Stratum` values if a reply of either
model begins with `<think>` or `<scratch_pad>`, one for every `template_kwargs` if any conversation
has some (thinking turned on and off, say), and one a turn if a conversation has several.

A model that thinks before it calls is another program than the same model answering at once: its
replies are longer, one wrong token in the reasoning changes the call, and reasoning can fail to
end. In one table the two would average out. A conversation belongs to the stratum of the
*reference's* reply; whether the artifact still reasons there is one of the counts. The reasoning is
split off before calls are read (`tool_calls.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convert.conversation import Conversation
from verify.call_outcomes import call_outcome, calls_due, confusion, is_right
from verify.equality import Tier
from verify.evidence import Answer
from verify.statistics import count_flips
from verify.tool_calls import canonical_json

Pair = tuple[Answer, Answer]


@dataclass(frozen=True, slots=True)
class Stratum:
    """One kind of reply. `kept` counts the artifact's of the same kind (None where all are), `due`
    prompts with calls.

    `right` and `unfinished` are pairs: the reference's count and the artifact's. The drop is of the
    share of right calls, with the interval that the check `tool_calls` has; None for no prompt.
    """

    name: str
    conversations: int
    kept: int | None
    unfinished: tuple[int, int]
    due: int
    right: tuple[int, int]
    worse: int
    better: int
    drop: float | None
    drop_low: float
    drop_high: float
    confusion: Mapping[str, Mapping[str, int]]


def reasons(answer: Answer) -> bool:
    """Whether a reply begins with reasoning, finished or not."""
    return answer.reply.answer_start > 0


def strata(
    conversations: Sequence[Conversation], pairs: Sequence[Pair], equality: Tier
) -> tuple[Stratum, ...]:
    """By reasoning if anybody reasons, by what templates were given, and by turn."""
    listed = list(zip(conversations, pairs, strict=True))
    found = []
    if any(reasons(answer) for pair in pairs for answer in pair):
        for name, wanted in (("with reasoning", True), ("without reasoning", False)):
            rows = [row for row in listed if reasons(row[1][0]) is wanted]
            kept = sum(reasons(theirs) is wanted for _, (_, theirs) in rows)
            found.append(_stratum(name, rows, kept, equality))
    kinds = dict.fromkeys(map(_variables, conversations))
    if any(kinds):
        for kind in sorted(kinds):
            rows = [row for row in listed if _variables(row[0]) == kind]
            name = f"with {kind}" if kind else "without template_kwargs"
            found.append(_stratum(name, rows, None, equality))
    turns = sorted({conversation.turn for conversation in conversations})
    if len(turns) > 1:
        for turn in turns:
            rows = [row for row in listed if row[0].turn == turn]
            found.append(_stratum(f"of turn {turn}", rows, None, equality))
    return tuple(found)


def _variables(conversation: Conversation) -> str:
    """What a conversation gives its template, in words."""
    given = sorted(conversation.template_kwargs.items())
    return ", ".join(f"{name}={canonical_json(value)}" for name, value in given)


def _stratum(
    name: str, rows: Sequence[tuple[Conversation, Pair]], kept: int | None, equality: Tier
) -> Stratum:
    judged = [
        (is_right(call_outcome(due, ours, c.tools), equality),
         is_right(call_outcome(due, theirs, c.tools), equality))
        for c, (ours, theirs) in rows
        if (due := calls_due(c, ours))
    ]  # fmt: skip
    flips = count_flips(judged)
    low, high = flips.interval
    conversations, pairs = [c for c, _ in rows], [pair for _, pair in rows]
    ours, theirs = (sum(p[side].reply.unfinished for p in pairs) for side in (0, 1))
    return Stratum(
        name=name,
        conversations=len(rows),
        kept=kept,
        unfinished=(ours, theirs),
        due=len(judged),
        right=(sum(first for first, _ in judged), sum(second for _, second in judged)),
        worse=flips.worse,
        better=flips.better,
        drop=flips.drop,
        drop_low=low,
        drop_high=high,
        confusion=confusion(conversations, pairs),
    )
