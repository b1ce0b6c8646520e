"""Reads tool calls out of a Hermes reply, strictly, and says what it had to forgive.

In: a reply's text, tags included. Out: a `Reply` that keeps three things apart:

    calls       written exactly as the format asks
    recovered   written wrongly, but it is clear what was meant; `malformed` says what was wrong
    malformed   one reason for everything wrong, recovered or lost

The format: `<tool_call>`, one JSON object with the keys "name" (a string) and "arguments" (an
object) in either order and nothing else, `</tool_call>`; white space around the object is free, and
so is text outside the tags. `docs/tool-calls.md` lists the choice made for every odd case.

The fact to know: a tag inside a JSON string is data, so blocks cannot be split by searching for
`</tool_call>`. The scanner below walks strings and brackets; it stops at anything JSON cannot hold
outside a string, which is also what keeps the time linear: two scans that disagree about where a
string begins cannot both go on.

A chat template may itself write the tag that opens reasoning, as the last thing in the prompt. The
reply then begins inside it; nothing in the reply says so, so the reader is told (`opened`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from convert.conversation import ToolCall
from verify.tool_call_repair import loads_strict, read_values, scan, scan_value

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_TAG = re.compile(f"{OPEN}|{CLOSE}")
_SPACE = re.compile(r"[ \t\r\n]*")
_REASONING_TAGS = ("<think>", "<scratch_pad>")
_REASONING = re.compile(r"\s*<(think|scratch_pad)>(.*?)(?:(</\1>)|\Z)", re.DOTALL)
_OPENED = {
    tag[1:-1]: re.compile(rf"(?!\s*{tag})()(.*?)(?:(</{tag[1:]})|\Z)", re.DOTALL)
    for tag in _REASONING_TAGS
}
"""Reasoning whose opening tag is in the prompt; the reply may write the tag once more."""


@dataclass(frozen=True, slots=True)
class Block:
    """From an opening tag to where reading goes on; `body` is all that stands in between.

    `lost` says that something in it, or all of it, is no call and cannot be read as one.
    """

    start: int
    end: int
    body: str
    closed: bool
    calls: tuple[ToolCall, ...] = ()
    recovered: tuple[ToolCall, ...] = ()
    malformed: tuple[str, ...] = ()
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a reply begins with; `end` is where the answer begins, `unfinished` that it never does.

    `malformed` has an entry for every call that was only thought.
    """

    text: str = ""
    end: int = 0
    unfinished: bool = False
    malformed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply taken apart; `text` is what stands outside calls and reasoning, ends stripped.

    `reasoning` holds every block at the reply's start; `unfinished` says that the last one is not
    closed, so that there is no answer. `blocks` are the calls as they were written, good or bad.
    """

    calls: tuple[ToolCall, ...]
    recovered: tuple[ToolCall, ...]
    text: str
    malformed: tuple[str, ...]
    reasoning: str = ""
    unfinished: bool = False
    answer_start: int = 0
    blocks: tuple[Block, ...] = ()


def parse_reply(text: str, opened: str = "") -> Reply:
    """Take a reply apart; any text is a reply, so nothing is raised. Linear in len(text).

    `opened` is what `opened_reasoning` found in the prompt.
    """
    reasoning = read_reasoning(text, opened)
    position = reasoning.end
    malformed = [*reasoning.malformed]
    blocks: list[Block] = []
    outside: list[str] = []
    while tag := _TAG.search(text, position):
        outside.append(text[position : tag.start()])
        if tag.group() == CLOSE:
            malformed.append("a closing tag without an opening one")
            position = tag.end()
            continue
        block = _read_block(text, tag)
        blocks.append(block)
        malformed += block.malformed
        position = block.end
    outside.append(text[position:])
    return Reply(
        calls=tuple(call for block in blocks for call in block.calls),
        recovered=tuple(call for block in blocks for call in block.recovered),
        text="".join(outside).strip(),
        malformed=tuple(malformed),
        reasoning=reasoning.text,
        unfinished=reasoning.unfinished,
        answer_start=reasoning.end,
        blocks=tuple(blocks),
    )


def read_settled(text: str, opened: str = "") -> tuple[ToolCall, ...]:
    """The valid calls at the front of `text` that no text after it could change."""
    reasoning = read_reasoning(text, opened)
    rest = text[reasoning.end :].lstrip()
    if reasoning.unfinished or any(tag.startswith(rest) for tag in _REASONING_TAGS):
        return ()
    position = reasoning.end
    calls: list[ToolCall] = []
    while tag := _TAG.search(text, position):
        position = tag.end()
        if tag.group() == OPEN:
            if not _is_settled(text, tag.end()):
                break
            block = _read_block(text, tag)
            calls += block.calls
            position = block.end
    return tuple(calls)


def _is_settled(text: str, start: int) -> bool:
    """Whether the block whose opening tag ends at `start` would be read so with more text too."""
    start = skip_space(text, start)
    end, settled = scan(text, start)
    return settled and _TAG.search(text, start if end is None else end) is not None


def compare_calls(expected: Iterable[ToolCall], got: Iterable[ToolCall]) -> bool:
    """Whether both hold the same calls, in any order, each as often as in the other.

    Names must be equal and arguments equal as JSON: 1, 1.0, "1" and true are four values, the order
    of an object's keys is nothing, that of a list everything.
    """
    return _counted(expected) == _counted(got)


def _counted(calls: Iterable[ToolCall]) -> Counter[tuple[str, str]]:
    return Counter((call.name, canonical_json(call.arguments)) for call in calls)


def canonical_json(value: Any) -> str:
    """A text that two JSON values share exactly if they are equal, number types included."""
    return json.dumps(value, sort_keys=True)


def opened_reasoning(prompt: str) -> str:
    """The name of the tag that a prompt ends with, if it opens reasoning; else empty."""
    end = prompt.rstrip()
    return next((tag[1:-1] for tag in _REASONING_TAGS if end.endswith(tag)), "")


def read_reasoning(text: str, opened: str = "") -> Reasoning:
    """The blocks of reasoning that `text` begins with, one after the other."""
    parts: list[str] = []
    malformed: list[str] = []
    end, unfinished = 0, False
    found = _OPENED[opened].match(text) if opened else None
    while found := found or _REASONING.match(text, end):
        parts.append(found.group(2))
        inside = found.group(2).count(OPEN)
        malformed += [f"a call inside <{found.group(1) or opened}>: not made"] * inside
        end, unfinished, found = found.end(), found.group(3) is None, None
    return Reasoning("\n".join(parts), end, unfinished, tuple(malformed))


def _read_block(text: str, opening: re.Match[str]) -> Block:
    """The block that `opening` begins."""
    start = skip_space(text, opening.end())
    end = scan_value(text, start)
    if end is not None and text.startswith(CLOSE, after := skip_space(text, end)):
        call = _strict_call(text[start:end])
        if call is not None:
            body = text[opening.end() : after]
            return Block(opening.start(), after + len(CLOSE), body, closed=True, calls=(call,))
    tag = _TAG.search(text, start if end is None else end)
    stop = tag.start() if tag else len(text)
    closed = tag is not None and tag.group() == CLOSE
    reasons = [] if closed else ["the closing tag is missing"]
    values, repairs = read_values(text[start:stop].strip())
    recovered = []
    for value in values:
        call, flaws = _lenient_call(value)
        reasons += flaws
        if call is not None:
            recovered.append(call)
    return Block(
        start=opening.start(),
        end=tag.end() if tag is not None and closed else stop,
        body=text[opening.end() : stop],
        closed=closed,
        recovered=tuple(recovered),
        malformed=(*repairs, *reasons) or ("not a call",),
        lost=not values or len(recovered) < len(values),
    )


def skip_space(text: str, start: int) -> int:
    """Where JSON's white space that begins at `start` ends."""
    found = _SPACE.match(text, start)
    assert found is not None
    return found.end()


def _strict_call(body: str) -> ToolCall | None:
    try:
        value = loads_strict(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    if not (isinstance(name, str) and name and isinstance(arguments, dict)):
        return None
    return ToolCall(name, arguments)


def _lenient_call(value: Any) -> tuple[ToolCall | None, list[str]]:
    """A value in a call's place as the call it seems to mean, and what is wrong with it."""
    if not isinstance(value, dict):
        return None, [f"a JSON {type(value).__name__} where a call should be: lost"]
    name = value.get("name")
    if not (isinstance(name, str) and name):
        return None, ["no function name: lost"]
    flaws = [f"unknown key {k!r}" for k in value if k not in ("name", "arguments", "parameters")]
    if "arguments" in value:
        arguments = value["arguments"]
    else:
        used = "parameters" in value
        flaws.append('"parameters" for "arguments"' if used else "arguments are missing")
        arguments = value.get("parameters", {})
    if isinstance(arguments, str):
        flaws.append("arguments are text that holds JSON")
        with contextlib.suppress(ValueError, RecursionError):
            arguments = loads_strict(arguments)
    if not isinstance(arguments, dict):
        return None, [*flaws, "arguments are not an object: lost"]
    return ToolCall(name, arguments), flaws
