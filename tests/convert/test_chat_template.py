"""Chat templates: where they are found, which one is chosen, and that none can run away."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from convert.chat_template import Templates, read_templates, render_text
from convert.conversation import Conversation
from convert.errors import CheckpointError, ConversationError
from convert.template_sandbox import Limits, TemplateSandbox

PLAIN = Conversation("plain", ({"role": "user", "content": "hi"},))
WITH_TOOLS = Conversation("tools", PLAIN.messages, ({"name": "f"},))
SMALL = Limits(cpu_seconds=0.5, memory_mib=192, characters=100_000)


def folder_with(path: Path, in_config: Any = None, **files: str) -> Path:
    config = {} if in_config is None else {"chat_template": in_config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        place = path / "additional_chat_templates" / f"{name}.jinja"
        if name == "default":
            place = path / "chat_template.jinja"
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
    return path


def test_both_places_are_read_and_the_files_win(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "c"}, {"name": "tool_use", "template": "ct"}]
    templates = read_templates(folder_with(tmp_path, named, default="f", rag="r"))
    assert templates.in_config == {"default": "c", "tool_use": "ct"}
    assert templates.in_files == {"default": "f", "rag": "r"}
    assert templates.effective == templates.in_files
    assert templates.conflicts == ("default", "rag", "tool_use")


def test_one_text_is_the_default_for_everything(tmp_path: Path) -> None:
    templates = read_templates(folder_with(tmp_path, "only"))
    assert templates.effective == {"default": "only"}
    assert templates.choose(WITH_TOOLS) == templates.choose(PLAIN) == "only"
    assert templates.conflicts == ()


def test_tool_use_is_for_conversations_with_tools() -> None:
    templates = Templates(in_config={"default": "d", "tool_use": "t"})
    assert (templates.choose(PLAIN), templates.choose(WITH_TOOLS)) == ("d", "t")


def test_a_missing_default_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConversationError, match="found none"):
        read_templates(tmp_path).choose(PLAIN)
    with pytest.raises(ConversationError, match=r"'plain' needs .* found only rag, tool_use"):
        Templates(in_files={"tool_use": "t", "rag": "r"}).choose(PLAIN)


@pytest.mark.parametrize("value", [7, ["text"], [{"name": "default"}], {"default": 7}])
def test_a_template_of_the_wrong_form_is_named(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConversationError, match="chat_template"):
        read_templates(folder_with(tmp_path, value))


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        read_templates(tmp_path)


SANDBOX = TemplateSandbox()


def render(template: str, sandbox: TemplateSandbox = SANDBOX, **more: Any) -> str:
    return render_text(template, PLAIN, bos_token="<s>", eos_token=None, sandbox=sandbox, **more)


def test_the_environment_is_the_one_templates_are_written_for() -> None:
    assert render("  {% if true %}\n  x\n  {% endif %}\n") == "  x\n"
    assert (
        render("{{ '<é&>' }}{{ {'b': '<é&>', 'a': 1.0}|tojson }}") == '<é&>{"b": "<é&>", "a": 1.0}'
    )
    assert (
        render("{{ {'b': 1, 'a': 2}|tojson(indent=1, sort_keys=True) }}")
        == '{\n "a": 2,\n "b": 1\n}'
    )
    assert render("{{ bos_token }}{{ eos_token }}{{ tools is none }}") == "<s>True"
    assert (
        render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "01"
    )
    assert render("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x }}b") == "ab"
    assert render("{{ add_generation_prompt }}", add_generation_prompt=False) == "False"
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_without_a_sandbox_one_is_started_and_ended() -> None:
    assert render_text("{{ bos_token }}", PLAIN, bos_token="<s>", eos_token=None) == "<s>"


def test_a_template_that_refuses_is_quoted() -> None:
    with pytest.raises(ConversationError, match=r"'plain': the chat template failed: .*roles must"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.getpid() }}",
        "{% include '/etc/passwd' %}",
        "{% if %}",
        "{{ tools|tojson(cls=1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(10**9) %}{{ a }}{% endfor %}",
        "{% for a in range(99999) %}{{ 'aaaaaaaa' }}{% endfor %}",
        "{{ 'a' * 10**12 }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ '%999999999d' % 1 }}",
    ],
)
def test_a_hostile_template_ends_in_an_error(template: str) -> None:
    sandbox = TemplateSandbox(SMALL)
    with pytest.raises(ConversationError, match="the chat template"):
        render(template, sandbox=sandbox)
    assert render("{{ messages[0].content }}", sandbox=sandbox) == "hi"
    sandbox.close()


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (9 ** 9) }}",
    ],
)
def test_work_that_writes_nothing_is_stopped(template: str) -> None:
    sandbox = TemplateSandbox(SMALL)
    begin = time.monotonic()
    with pytest.raises(ConversationError, match="processor time"):
        render(template, sandbox=sandbox)
    assert time.monotonic() - begin < 120
    assert render("alive", sandbox=sandbox) == "alive"
    sandbox.close()


def test_the_child_goes_with_its_sandbox() -> None:
    sandbox = TemplateSandbox()
    sandbox.render("x", {})
    child = sandbox._child
    assert child is not None
    assert child.poll() is None
    del sandbox
    assert child.poll() is not None
