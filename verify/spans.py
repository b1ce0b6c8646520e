"""Which part of a reply each token belongs to, so that damage is measured where it sits.

In: the ids of a reply. Out: one `Span` a token. Most tokens of a tool call are forced by the format
and almost free; what quantization gets wrong are names and values, and an average hides them.

    trigger     `<tool_call>`: the decision to call
    close       `</tool_call>` and the token that ends the reply
    structure   punctuation of JSON, white space beside it, and the keys "name" and "arguments"
    name        the function's name
    key         a parameter's name
    string      a value that is text
    number      a value that is a number, true, false or null
    reasoning   inside `<think>` or `<scratch_pad>` at the reply's start
    text        everything else

A reply that is one JSON object is read the same way; it has no function's name. A token that covers
characters of several parts belongs to the most telling one: the first in the order of `_RANK`. JSON
is read by its tokens alone, so a broken call still gets its parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import StrEnum

from convert.rendering import Tokenizer
from verify.tool_calls import CLOSE, OPEN, read_reasoning


class Span(StrEnum):
    """A part of a reply."""

    TRIGGER = "trigger"
    CLOSE = "close"
    STRUCTURE = "structure"
    NAME = "name"
    KEY = "key"
    STRING = "string"
    NUMBER = "number"
    REASONING = "reasoning"
    TEXT = "text"


_RANK = (
    Span.TRIGGER, Span.CLOSE, Span.NAME, Span.NUMBER, Span.STRING, Span.KEY, Span.TEXT,
    Span.REASONING, Span.STRUCTURE,
)  # fmt: skip
_BLOCK = re.compile(f"({OPEN})(.*?)({CLOSE}|\\Z)", re.DOTALL)
_JSON = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*"?)|(?P<open>[{\[])|(?P<close>[}\]])|(?P<comma>,)'
    r"|(?P<colon>:)|(?P<space>\s+)|(?P<other>[^\s{}\[\],:\"]+)",
    re.DOTALL,
)


def label_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], *, finished: bool, opened: str = ""
) -> list[Span]:
    """The part every token of a reply belongs to; `finished` says that the last one ended it.

    `opened` is reasoning that the prompt opens, as `tool_calls.opened_reasoning` finds it.
    """
    content = ids[:-1] if finished else ids
    characters = label_characters(tokenizer.decode(content), opened)
    spans: list[Span] = []
    before = 0
    for count in range(1, len(content) + 1):
        # a token may end inside a character, which decodes to U+FFFD until the next one comes
        after = len(tokenizer.decode(content[:count]).rstrip("\N{REPLACEMENT CHARACTER}"))
        covered = characters[before : max(after, before + 1)] or [Span.TEXT]
        spans.append(min(covered, key=_RANK.index))
        before = max(before, after)
    return [*spans, Span.CLOSE] if finished else spans


def label_characters(text: str, opened: str = "") -> list[Span]:
    """The part every character of a reply belongs to."""
    labels = [Span.TEXT] * len(text)
    start = read_reasoning(text, opened).end
    labels[:start] = [Span.REASONING] * start
    for block in _BLOCK.finditer(text, start):
        _fill(labels, block.start(1), block.end(1), Span.TRIGGER)
        _label_json(labels, text, block.start(2), block.end(2), is_call=True)
        _fill(labels, block.start(3), block.end(3), Span.CLOSE)
    if text[start:].lstrip().startswith("{"):
        _label_json(labels, text, start, len(text), is_call=False)
    return labels


def _fill(labels: list[Span], start: int, stop: int, span: Span) -> None:
    labels[start:stop] = [span] * (stop - start)


def _label_json(labels: list[Span], text: str, start: int, stop: int, *, is_call: bool) -> None:
    _fill(labels, start, stop, Span.STRUCTURE)
    for begin, end, depth, key, is_key in _leaves(text, start, stop):
        if is_call and depth == 1:
            span = Span.NAME if key == "name" and not is_key else Span.STRUCTURE
        elif is_key:
            span = Span.KEY
        else:
            span = Span.STRING if text[begin] == '"' else Span.NUMBER
        _fill(labels, begin, end, span)


def _leaves(text: str, start: int, stop: int) -> Iterator[tuple[int, int, int, str, bool]]:
    """Keys and values of JSON text: begin, end, depth, the key it is or stands under, is it one."""
    stack: list[str] = []
    key, after_colon = "", False
    for token in _JSON.finditer(text, start, stop):
        kind, word = token.lastgroup, token.group()
        if kind == "open":
            stack.append(word)
        elif kind == "close" and stack:
            stack.pop()
        elif kind in ("string", "other"):
            is_key = bool(stack) and stack[-1] == "{" and not after_colon
            key = word.strip('"') if is_key else key
            yield token.start(), token.end(), len(stack), key, is_key
        if kind != "space":
            after_colon = kind == "colon"
