"""Chat templates: found as transformers finds them, rendered where they can do no harm.

In: a model folder. Out: `Templates`, every template by name from each place it can stand in, and
`render_text`, the prompt's text.

The one fact to know: a folder can hold its templates twice, in tokenizer_config.json and as .jinja
files, and readers differ. transformers uses the .jinja files alone as soon as there is one
(`tokenization_utils_base.py`), llama.cpp's converter prefers tokenizer_config.json
(`gguf-py/gguf/vocab.py`), so two artifacts of one folder can answer by different templates.
`Templates` keeps both sets apart, `effective` is transformers' choice and `conflicts` names what
differs.

Rendering happens in a `TemplateSandbox`, which bounds what a hostile template can use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint import TEMPLATE_FOLDER
from convert.conversation import Conversation
from convert.errors import ConversationError
from convert.model_spec import read_json_object
from convert.template_sandbox import TemplateSandbox

CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
DEFAULT = "default"
TOOL_USE = "tool_use"


@dataclass(frozen=True, slots=True)
class Templates:
    """Templates by name: `in_config` from tokenizer_config.json, `in_files` from .jinja files.

    A folder's only template, whatever it is for, is called "default".
    """

    in_config: Mapping[str, str] = field(default_factory=dict)
    in_files: Mapping[str, str] = field(default_factory=dict)

    @property
    def effective(self) -> Mapping[str, str]:
        """What transformers would use: the files if there is one, else the config."""
        return self.in_files or self.in_config

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Names whose two copies differ, or that only one of two non-empty sets has."""
        if not self.in_files or not self.in_config:
            return ()
        names = sorted({*self.in_files, *self.in_config})
        return tuple(n for n in names if self.in_files.get(n) != self.in_config.get(n))

    def choose(self, conversation: Conversation) -> str:
        """The text of `tool_use` for a conversation with tools, if there is one, else `default`."""
        templates = self.effective
        if conversation.tools and TOOL_USE in templates:
            return templates[TOOL_USE]
        if DEFAULT in templates:
            return templates[DEFAULT]
        found = f"only {', '.join(sorted(templates))}" if templates else "none"
        raise ConversationError(
            f"conversation {conversation.id!r} needs a chat template named 'default'; found {found}"
        )


def read_templates(folder: Path) -> Templates:
    """Every chat template of a model folder; none at all is not an error here."""
    in_files: dict[str, str] = {}
    if (folder / TEMPLATE_NAME).is_file():
        in_files[DEFAULT] = _read_text(folder / TEMPLATE_NAME)
    for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja")):
        in_files[path.name.removesuffix(".jinja")] = _read_text(path)
    return Templates(_templates_in_config(folder / CONFIG_NAME), in_files)


def _templates_in_config(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    value = read_json_object(path).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    try:
        named = (
            dict(value) if isinstance(value, dict) else {t["name"]: t["template"] for t in value}
        )
    except (TypeError, KeyError) as error:
        raise ConversationError(
            f"{path}: chat_template is neither a text nor a list of {{name, template}}"
        ) from error
    if not all(isinstance(item, str) for pair in named.items() for item in pair):
        raise ConversationError(f"{path}: chat_template: a name or a template is not a text")
    return named


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversationError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def render_text(
    template: str,
    conversation: Conversation,
    *,
    bos_token: str | None,
    eos_token: str | None,
    add_generation_prompt: bool = True,
    special_tokens: Mapping[str, str] | None = None,
    sandbox: TemplateSandbox | None = None,
) -> str:
    """The prompt of `conversation` as text, as transformers' `apply_chat_template` writes it.

    `special_tokens` (`pad_token` ...) and the conversation's `template_kwargs` are further names a
    template may read. A sandbox that is handed in stays open; without one, a child is started for
    this rendering alone.
    """
    variables: dict[str, Any] = dict(special_tokens or {})
    variables |= conversation.template_kwargs
    variables |= {k: v for k, v in (("bos_token", bos_token), ("eos_token", eos_token)) if v}
    variables["messages"] = list(conversation.messages)
    variables["tools"] = list(conversation.tools) or None
    variables["documents"] = None
    variables["add_generation_prompt"] = add_generation_prompt
    used = sandbox or TemplateSandbox()
    try:
        return used.render(template, variables)
    except ConversationError as error:
        raise ConversationError(f"conversation {conversation.id!r}: {error}") from error
    finally:
        if sandbox is None:
            used.close()
