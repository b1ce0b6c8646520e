"""Every defect is found by name in a template that has it, published or made, and in no other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from convert.template_sandbox import Limits
from tests.verify.template_damage import DEFECTS, GOOD, edited
from tests.vocabularies import data_file
from verify import template_defects, template_probe
from verify.lint.lints import LINTS
from verify.template_defects import find_defects, look_at_braces

SPECIAL = {"bos_token": "<|begin_of_text|>", "eos_token": "<|im_end|>"}
NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"
OFFICIAL = {
    "template-brace-extra",
    "template-brace-missing",
    "template-array-items",
    "template-type-refused",
    "template-arguments-joined",
    "template-optional-keys",
    "template-content-dropped",
    "template-empty-calls",
    "template-not-prefix-stable",
}
"""Six defects are known of the published tool_use template, two of them of two parts; in the
seventh, each tool's JSON lacks a closing brace."""


def defects(template: str, name: str = "tool_use") -> dict[str, str]:
    return {found.name: found.found for found in find_defects({name: template}, SPECIAL)}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_by_what_the_template_renders(name: str) -> None:
    assert defects(DEFECTS[name]).keys() == {name}


def test_a_good_template_has_none() -> None:
    assert defects(GOOD) == {}


def test_every_defect_has_a_lint_of_its_name() -> None:
    assert DEFECTS.keys() <= LINTS.keys()


def test_our_own_templates_have_none() -> None:
    config = json.loads((NANO / "tokenizer_config.json").read_text())
    templates = {t["name"]: t["template"] for t in config["chat_template"]}
    assert templates.keys() == {"default", "tool_use"}
    assert list(find_defects(templates, SPECIAL)) == []


def test_the_six_defects_of_the_published_tool_use_template() -> None:
    path = data_file("templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja")
    found = defects(path.read_text())
    assert found.keys() == OFFICIAL
    assert "list[Union[]]" in found["template-array-items"]
    assert '"type": "object"}}' in found["template-brace-extra"]
    assert "</tools>" in found["template-brace-missing"]
    for kind in ('["string", "null"]', '"dict"', '"float"', '"any"', '"tuple"'):
        assert kind in found["template-type-refused"]
    assert "calls itself without end" in found["template-type-refused"]
    assert "no description, no parameters" in found["template-optional-keys"]
    assert found["template-not-prefix-stable"].startswith("after a tool's result: ")
    assert "</tool_response><|im_end|>" in found["template-not-prefix-stable"]


def test_an_edited_copy_of_it_has_them_too() -> None:
    path = data_file("templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja")
    text = path.read_text().replace("json_to_python_type", "kind").replace("FunctionCall", "Call")
    assert defects(text).keys() == OFFICIAL


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("Qwen-Qwen3-0.6B.jinja", set()),
        ("ByteDance-Seed-OSS.jinja", {"template-array-items", "template-optional-keys"}),
    ],
)
def test_other_published_templates(file: str, names: set[str]) -> None:
    assert defects(data_file(f"templates/{file}").read_text(), "default").keys() == names


def test_default_is_not_asked_for_tools_where_tool_use_is_there() -> None:
    plain = edited("{% for tool in tools %}", "{% for tool in raise_exception('no') %}")
    found = {(d.template, d.name) for d in find_defects({"default": plain}, SPECIAL)}
    assert found == {("default", "template-fails")}
    quiet = "{% if tools %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    assert list(find_defects({"default": quiet, "tool_use": GOOD}, SPECIAL)) == []


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "hostile",
    [
        LOOP,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}{{ ns.s }}",
        "{{ '\\ud800' }}",
        "{% unclosed",
    ],
)
def test_a_hostile_template_is_a_finding(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(cpu_seconds=0.3, memory_mib=256, characters=100_000)
    monkeypatch.setattr(template_defects, "PROBE_LIMITS", limits)
    begin = time.monotonic()
    found = defects(hostile)
    assert time.monotonic() - begin < 30
    if "ud800" not in hostile:
        assert found.keys() == {"template-fails"}


def test_one_that_only_hangs_on_some_tools_is_still_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(template_defects, "PROBE_LIMITS", Limits(cpu_seconds=0.2))
    hangs = edited(
        "{{ tool | tojson }}",
        "{{ tool | tojson }}{% if '\"items\"' in (tool | tojson) or '\"any\"' in (tool | tojson) %}"
        + LOOP + "{% endif %}",
    )  # fmt: skip
    found = defects(hangs)
    assert found.keys() == {"template-type-refused"}
    assert "processor time" in found["template-type-refused"]
    assert template_probe.PROBE_LIMITS.cpu_seconds <= 2


EXTRA, MISSING = "template-brace-extra", "template-brace-missing"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"a": 1}}', [EXTRA]),
        ('make: {"a": {"b": "}"}}}', [EXTRA]),
        ('{"a": {"b": 1}}', []),
        ('{"name": <name>, "arguments": {"x": 1}}', []),
        ('{"name": <name>, "arguments": {"x": 1}, "more": 1}', []),
        ('{"name": <name>, "arguments": {"x": 1}\n}', []),
        ('{"name": <name>, "arguments": {"x": 1}', [MISSING]),
        ('{"type": "f", "f": {"a": 1} and then', [MISSING]),
        ('"f": {"a": 1} and then', []),
        ('{"f": {"a": 1} or {"b": 1}}', [MISSING]),
        ('{{"a": 1}}', []),
        ('[{"a": 1}, {"b": 2}]', []),
        ("{" * 500 + '{"a": 1}', []),
        ('{"a": "two\nlines"}}', [EXTRA]),
        ("}}", []),
        ("", []),
    ],
)
def test_braces(text: str, names: list[str]) -> None:
    assert [name for name, _ in look_at_braces(text)] == names


def test_objects_that_never_close_take_no_time() -> None:
    begin = time.process_time()
    assert list(look_at_braces('{"a":' * 20_000)) == []
    assert list(look_at_braces('{"a":[' * 20_000)) == []
    assert time.process_time() - begin < 5
