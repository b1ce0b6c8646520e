"""Conversations that probe a chat template, and the rendering of them.

In: a template, the special tokens it reads, and whether it gets tools. Out: a `Probe`, which
renders crafted messages with a crafted tool and gives the prompt, or the reason why there is none.
What is wrong with a prompt is not known here (`template_defects.py`).

Templates are programs of strangers. They run in the sandbox of `convert/template_sandbox.py`, here
with PROBE_LIMITS: a probe takes milliseconds and some thousand characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convert.chat_template import render_text
from convert.conversation import Conversation, JsonObject
from convert.errors import ConversationError
from convert.template_sandbox import Limits, TemplateSandbox

PROBE_LIMITS = Limits(cpu_seconds=2.0, characters=100_000)
FIRST, SECOND = "alpha_arg", "beta_arg"
WORDS = "Alpha words."
TYPES: tuple[Any, ...] = (["string", "null"], "dict", "float", "any", "tuple")
"""A union, which JSON Schema has, and the names that published tool lists (BFCL's) use."""
USER: JsonObject = {"role": "user", "content": "Begin."}
AGAIN: JsonObject = {"role": "user", "content": "Go on."}
DONE: JsonObject = {"role": "assistant", "content": "It is done."}
RESULT: JsonObject = {
    "role": "tool", "name": "probe_tool", "tool_call_id": "call00001", "content": "Result."
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Probe:
    """One template under its name, and what it is asked with."""

    name: str
    template: str
    special: Mapping[str, str]
    sandbox: TemplateSandbox
    with_tools: bool

    def render(self, *messages: JsonObject, tool: JsonObject | None = None) -> str | None:
        """The prompt, or None if there is none."""
        try:
            return self._render(messages, tool)
        except ConversationError:
            return None

    def failure(self, *messages: JsonObject, tool: JsonObject | None = None) -> str | None:
        """Why there is no prompt, or None if there is one."""
        try:
            self._render(messages, tool)
        except ConversationError as error:
            return str(error).removeprefix("conversation 'probe': the chat template ")
        return None

    def _render(self, messages: Sequence[JsonObject], tool: JsonObject | None) -> str:
        tools = (tool or tool_with(string_and_integer()),) if self.with_tools else ()
        return render_text(
            self.template,
            Conversation("probe", tuple(messages), tools),
            bos_token=self.special.get("bos_token"),
            eos_token=self.special.get("eos_token"),
            special_tokens=self.special,
            sandbox=self.sandbox,
        )


def tool_with(properties: JsonObject | None, *, description: str | None = "Probes.") -> JsonObject:
    """A tool of these parameters; None leaves the key out."""
    function: JsonObject = {"name": "probe_tool"}
    if description is not None:
        function["description"] = description
    if properties is not None:
        required = list(properties)
        function["parameters"] = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": function}


def string_and_integer() -> JsonObject:
    """Two parameters with a description each."""
    return {
        FIRST: {"type": "string", "description": WORDS},
        SECOND: {"type": "integer", "description": "Beta words."},
    }


def message_with_call(content: str) -> JsonObject:
    """A message of the assistant: words, which may be none, and one call."""
    function = {"name": "probe_tool", "arguments": {FIRST: "a", SECOND: 1}}
    wire = {"id": "call00001", "type": "function", "function": function}
    return {"role": "assistant", "content": content, "tool_calls": [wire]}
