"""How calls are written: properties of a reply's bytes on which programs that read calls depend.

In: an `Answer` and the functions that were on offer. Out: the properties its calls lack.

    name_first                 "name" stands before "arguments"
    newline_after_tag          a line break follows `<tool_call>` at once
    one_object_a_tag           one object between a pair of tags, not several and not a list
    strict_json                what stands between the tags is JSON, nothing beside it
    closing_tag                every call has its closing tag
    arguments_object           "arguments" is there, and is an object
    offered_function           the function is one of those on offer
    nothing_after_the_call     after the first call come calls and white space only
    nothing_leaked             no control token, no other tag and no turn marker outside the calls
    no_closing_tag_in_strings  no `</tool_call>` inside a call
    no_markup_in_strings       no `<` and no `&` inside a call
    no_call_in_reasoning       nothing that reads as a call inside `<think>` or `<scratch_pad>`

Several of these are no fault: the format allows arguments first, and `&` is a character. They are
observed because some engine loses the call (`portability.yaml`). Nothing of any engine's parser is
imitated here. A reply without a call lacks nothing; whether a call was due is another check's
question. Each property is judged by itself as far as the others allow: text that cannot be read at
all lacks `strict_json` and says nothing about the order of its keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import StrEnum

from verify.evidence import Answer
from verify.tool_call_repair import loads_strict, read_values
from verify.tool_calls import CLOSE, OPEN, Block, skip_space


class Form(StrEnum):
    """A property of the bytes of a reply with calls."""

    NAME_FIRST = "name_first"
    NEWLINE = "newline_after_tag"
    ONE_OBJECT = "one_object_a_tag"
    STRICT_JSON = "strict_json"
    CLOSED = "closing_tag"
    ARGUMENTS = "arguments_object"
    OFFERED = "offered_function"
    LAST = "nothing_after_the_call"
    CLEAN = "nothing_leaked"
    NO_CLOSING_TAG = "no_closing_tag_in_strings"
    NO_MARKUP = "no_markup_in_strings"
    NOT_THOUGHT = "no_call_in_reasoning"


_LEAK = re.compile(
    r"<\|[^|<>\s]{1,64}\|>|</?(?:think|scratch_pad|tool_call|tool_response|tools|s)>"
)
"""Turn markers of every family, and tags that have no business outside their place."""
_DECODER = json.JSONDecoder()


def writes_calls(answer: Answer) -> bool:
    """Whether a reply holds anything that was begun as a call, made or only thought."""
    return bool(answer.reply.blocks) or OPEN in answer.reply.reasoning


def lacking(answer: Answer, offered: Collection[str], special: Collection[str]) -> frozenset[Form]:
    """The properties that the calls of a reply lack; `special` are the control tokens' texts."""
    if not writes_calls(answer):
        return frozenset()
    reply = answer.reply
    found = {form for block in reply.blocks for form in _of_block(block, offered)}
    parts = _outside(answer)
    if any(part.strip() for part in parts[1:]):
        found.add(Form.LAST)
    if any(_LEAK.search(part) or any(token in part for token in special) for part in parts):
        found.add(Form.CLEAN)
    if OPEN in reply.reasoning:
        found.add(Form.NOT_THOUGHT)
    return frozenset(found)


def _outside(answer: Answer) -> list[str]:
    """What stands before the first call, and after each."""
    begin, parts = answer.reply.answer_start, []
    for block in answer.reply.blocks:
        parts.append(answer.text[begin : block.start])
        begin = block.end
    return [*parts, answer.text[begin:]]


def _of_block(block: Block, offered: Collection[str]) -> set[Form]:
    """What one call lacks."""
    body = block.body.strip()
    values, _ = read_values(body)
    objects = [value for value in values if isinstance(value, dict)]
    lacks = {
        Form.NEWLINE: not block.body.startswith("\n"),
        Form.CLOSED: not block.closed,
        Form.NO_CLOSING_TAG: CLOSE in body,
        Form.NO_MARKUP: "<" in body or "&" in body,
        Form.STRICT_JSON: not _is_strict(body),
        Form.ONE_OBJECT: len(values) > 1 or body.startswith("["),
        Form.NAME_FIRST: any(not _name_first(list(value)) for value in objects),
        Form.ARGUMENTS: any(not isinstance(value.get("arguments"), dict) for value in objects),
        Form.OFFERED: any(not _is_offered(value.get("name"), offered) for value in objects),
    }
    return {form for form, lacking in lacks.items() if lacking}


def _is_offered(name: object, offered: Collection[str]) -> bool:
    return isinstance(name, str) and name in offered


def _name_first(keys: list[str]) -> bool:
    return not {"name", "arguments"} <= {*keys} or keys.index("name") < keys.index("arguments")


def _is_strict(body: str) -> bool:
    """JSON values, one or several, and nothing else; a key may stand twice, as JSON allows."""
    position = 0
    try:
        while position < len(body):
            _, end = _DECODER.raw_decode(body, position)
            loads_strict(body[position:end], twins=True)
            position = skip_space(body, end)
    except (ValueError, RecursionError):
        return False
    return position > 0
