"""Defects of chat templates, each found by what a template makes of conversations that probe it.

In: templates and the special tokens they read. Out: `Defect`s by name. No template is compared with
a known text: a probe is rendered, and the defect is in what comes out, so an edited copy of a
defective template is found as well as the one that was published.

The one fact to know: the tool_use template published with Hermes 2 Pro and Hermes 3 (one text) has
nine of these twelve, and the models were served with it. A defect is therefore told and never
mended, and an artifact does not fail for one that its reference has too.

A template that renders nothing is asked nothing further, and templates other than `default` and
`tool_use` (for retrieval, say), which read variables that no probe knows, are not looked at: some
forty renderings at most, each within `template_probe.PROBE_LIMITS`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from convert.chat_template import DEFAULT, TOOL_USE
from convert.conversation import JsonObject
from convert.template_sandbox import TemplateSandbox
from verify.template_probe import (
    AGAIN,
    DONE,
    FIRST,
    PROBE_LIMITS,
    RESULT,
    SECOND,
    TYPES,
    USER,
    WORDS,
    Probe,
    message_with_call,
    string_and_integer,
    tool_with,
)

SAID, ALONE = "Said before calling.", "Said without calling."
_SHOWN = 60
_LINE = 10_000
_BRACES = 1000
Found = Iterator[tuple[str, str]]
Messages = tuple[JsonObject, ...]


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect by name, the name of the template that has it, and what was seen."""

    name: str
    template: str
    found: str


def find_defects(templates: Mapping[str, str], special: Mapping[str, str]) -> Iterator[Defect]:
    """Every defect of `default` and `tool_use`; `special` are the special tokens by name.

    Only a template that gets tools is probed with them: with a `tool_use` beside it, `default`
    never does.
    """
    for name in (DEFAULT, TOOL_USE):
        if name not in templates:
            continue
        sandbox = TemplateSandbox(PROBE_LIMITS)
        try:
            tools = name == TOOL_USE or TOOL_USE not in templates
            probe = Probe(name, templates[name], special, sandbox, tools)
            for defect, found in _look(probe):
                yield Defect(defect, name, found)
        finally:
            sandbox.close()


def _look(probe: Probe) -> Found:
    """All of it; of a template that renders nothing, only that."""
    failure = probe.failure(USER)
    if failure is not None:
        yield "template-fails", f"a user's message: {failure}"
        return
    yield from _look_at_front(probe)
    yield from _look_at_turns(probe)
    if probe.with_tools:
        yield from _look_at_tools(probe)
        yield from _look_at_calls(probe)


def _look_at_front(probe: Probe) -> Found:
    """How often the BOS stands at the front."""
    text, bos = probe.render(USER), probe.special.get("bos_token")
    if text and bos and text.startswith(2 * bos):
        yield "template-bos-twice", f"a prompt begins {text[: 2 * len(bos)]!r}"


def _look_at_turns(probe: Probe) -> Found:
    """Whether a prompt is the beginning of the next turn's."""
    called: Messages = (USER, message_with_call(""), RESULT)
    turns: list[tuple[Messages, Messages, str]] = [((USER,), (USER, DONE, AGAIN), "after a reply")]
    if probe.with_tools:
        turns.append(((USER,), called, "after a call"))
        turns.append((called, (*called, DONE, AGAIN), "after a tool's result"))
    for earlier, later, when in turns:
        first, second = probe.render(*earlier), probe.render(*later)
        if first is not None and second is not None and not second.startswith(first):
            yield "template-not-prefix-stable", f"{when}: {_where_they_part(first, second)}"


def _where_they_part(first: str, second: str) -> str:
    pairs = zip(first, second, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    begin = max(0, at - _SHOWN // 2)
    before, after = (text[begin : at + _SHOWN // 2] for text in (first, second))
    return f"{before!r} of one turn is {after!r} in the next"


def _look_at_tools(probe: Probe) -> Found:
    """How tools are written, and which of them stop the template."""
    text = probe.render(USER) or ""
    yield from look_at_braces(text)
    if joined := re.search(rf"{re.escape(WORDS)}[ \t]*{SECOND}", text):
        yield "template-arguments-joined", f"no line break in {joined[0]!r}"
    yield from _look_at_items(probe)
    odd = {
        f"type {json.dumps(kind)}": tool_with({FIRST: {"type": kind, "description": WORDS}})
        for kind in TYPES
    }
    yield from _refused("template-type-refused", probe, odd)
    bare = {
        "no description": tool_with(string_and_integer(), description=None),
        "no parameters": tool_with(None),
    }
    yield from _refused("template-optional-keys", probe, bare)


def look_at_braces(text: str) -> Found:
    """JSON objects in the prompt that one closing brace too many follows, or one too few.

    An object inside a larger one that is no JSON (a placeholder stands in it) may be followed by
    the larger one's brace: it stands after a key, or after a brace that its line leaves open. After
    both, the larger one must go on or close. The first _BRACES objects are looked at: objects that
    never close take the square of their number.
    """
    decoder = json.JSONDecoder(strict=False)
    found: dict[str, str] = {}
    place = text.find("{")
    for _ in range(_BRACES):
        if place < 0:
            break
        try:
            _, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place = text.find("{", place + 1)
            continue
        line = text[max(text.rfind("\n", 0, place) + 1, place - _LINE) : place]
        key = re.search(r'"\s*:\s*$', line[-_SHOWN:])
        listed = re.search(r"[,\[{]\s*$", line[-_SHOWN:])
        left_open = line.count("{") > line.count("}")
        if text[end : end + 1] == "}" and not (key or listed or left_open):
            shown = text[max(place, end - _SHOWN) : end + 1]
            found.setdefault("template-brace-extra", f"after {shown!r}")
        if key and left_open and not re.match(r"\s*[},]", text[end : end + _SHOWN]):
            shown = text[max(place, end - _SHOWN) : end + 10]
            found.setdefault("template-brace-missing", f"in {shown!r}")
        place = text.find("{", end)
    yield from found.items()


def _look_at_items(probe: Probe) -> Found:
    """Whether what an array holds is written in as many places as what a parameter is."""

    def render(spec: JsonObject) -> str:
        tool = tool_with({FIRST: {**spec, "description": WORDS}})
        return probe.render(USER, tool=tool) or ""

    scalars = [render({"type": kind}) for kind in ("string", "integer")]
    arrays = [render({"type": "array", "items": {"type": kind}}) for kind in ("string", "integer")]
    seen, expected = _places(arrays), _places(scalars)
    if seen < expected and all(arrays):
        shown = re.search(rf'{FIRST}[^"\n]{{0,{_SHOWN}}}', arrays[0])
        written = f"; it is written {shown[0]!r}" if shown else ""
        of = f"{seen} of {expected} places tell what an array holds"
        yield "template-array-items", f"{of}{written}"


def _places(texts: list[str]) -> int:
    """How many words of the first text the second has not: linear, whatever a template writes."""
    first, second = (Counter(re.findall(r"\w+", text)) for text in texts)
    return sum((first - second).values())


def _refused(name: str, probe: Probe, tools: Mapping[str, JsonObject]) -> Found:
    """Tools that stop the template, with the reason of the first."""
    reasons = {what: probe.failure(USER, tool=tool) for what, tool in tools.items()}
    refused = {what: reason for what, reason in reasons.items() if reason is not None}
    if refused:
        yield name, f"a tool with {', '.join(refused)}: {next(iter(refused.values()))}"


def _look_at_calls(probe: Probe) -> Found:
    """What becomes of the assistant's words beside calls."""
    failure = probe.failure(USER, message_with_call(""), RESULT)
    if failure is not None:
        yield "template-history-fails", f"a call and its result: {failure}"
        return
    text = probe.render(USER, message_with_call(SAID), RESULT)
    if text is None or SAID not in text:
        yield "template-content-dropped", f"{SAID!r} beside a call is not in the next prompt"
    empty: JsonObject = {"role": "assistant", "content": ALONE, "tool_calls": []}
    text = probe.render(USER, empty, AGAIN)
    if text is None or ALONE not in text:
        yield "template-empty-calls", f"{ALONE!r} beside `tool_calls: []` is not in the next prompt"
