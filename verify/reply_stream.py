"""A reply read while it comes: each valid call as soon as its closing tag is there.

In: pieces of a reply, cut anywhere. Out: calls, in order, and at the end the same `Reply` that
`parse_reply` makes of the whole text. The calls handed out early and those that `rest` gives at the
end are together exactly `Reply.calls`, for every way to cut the text; `tests/verify` cuts it in all
ways. What was written wrongly is only recovered at the end, when all of it is known: a repair that
the next piece would undo is none.

A call is handed out only when no further text could change how it, or anything before it, is read.
A quote that is not yet closed, reasoning that may go on, or half a tag therefore wait.

Looking again costs what was received so far. It happens when a piece may have closed a tag, and at
most LOOKS times the text altogether, so the time stays linear for hostile text too; beyond that,
calls come later, never otherwise.
"""

from __future__ import annotations

from convert.conversation import ToolCall
from verify.tool_calls import Reply, parse_reply, read_settled

LOOKS = 64
_ALWAYS = 4096
"""Characters that may be looked at in any case: short replies are never kept waiting."""


class ReplyStream:
    """One reply, in pieces; `opened` is reasoning that the prompt opens (`opened_reasoning`)."""

    def __init__(self, opened: str = "") -> None:
        self._opened = opened
        self._pieces: list[str] = []
        self._length = self._looked_at = self._given = 0

    def feed(self, piece: str) -> tuple[ToolCall, ...]:
        """Take the next piece; the valid calls that it completes."""
        self._pieces.append(piece)
        self._length += len(piece)
        due = self._looked_at + self._length <= LOOKS * self._length + _ALWAYS
        if ">" not in piece or not due:
            return ()
        self._looked_at += self._length
        return self._new(read_settled(self._text(), self._opened))

    def finish(self) -> tuple[Reply, tuple[ToolCall, ...]]:
        """The whole reply, and its valid calls that were not handed out before."""
        reply = parse_reply(self._text(), self._opened)
        return reply, self._new(reply.calls)

    def _text(self) -> str:
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]

    def _new(self, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        new, self._given = calls[self._given :], len(calls)
        return new
