"""A good tool_use template, and the same with one defect each: by behaviour, not by known text."""

from __future__ import annotations

GOOD = """{{ bos_token }}<|im_start|>system
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools><|im_end|>
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{% for call in m.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TOOL, CONTENT = "{{ tool | tojson }}", "{{ m.content or '' }}"
PROPERTIES = "((tool.function.parameters or {}).properties or {}).items()"


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def signature(written: str) -> str:
    """The tool as JSON, then a word about each of its parameters."""
    return edited(
        TOOL, TOOL + "{% for name, spec in " + PROPERTIES + " %}" + written + "{% endfor %}"
    )


DEFECTS = {
    "template-fails": edited(CONTENT, "{{ raise_exception('never') }}"),
    "template-bos-twice": "{{ bos_token }}" + GOOD,
    "template-history-fails": edited(
        CONTENT, "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + CONTENT
    ),
    "template-type-refused": signature(
        "{% if spec.type == 'dict' %}{{ raise_exception('no dict') }}{% endif %}"
    ),
    "template-optional-keys": edited(TOOL, TOOL + "{{ '' + tool.function.description }}"),
    "template-content-dropped": edited(CONTENT, "{{ '' if m.tool_calls else m.content }}"),
    "template-empty-calls": edited(
        CONTENT, "{{ '' if m.tool_calls is defined and not m.tool_calls else m.content }}"
    ),
    "template-array-items": signature(" {{ name }}: {{ spec.type }}\n"),
    "template-arguments-joined": signature(" {{ name }}: {{ spec.description }}"),
    "template-brace-extra": edited("</tools>", '</tools> Answer by {"type": {"a": 1}}} only.'),
    "template-brace-missing": edited(
        TOOL, '{"type": "function", "function": {{ tool.function | tojson }}'
    ),
    "template-not-prefix-stable": edited(
        "{% endfor %}<|im_end|>", "{% endfor %}{{ '' if loop.last else '\n' }}<|im_end|>"
    ),
}
"""By the defect's name; each template has this one and no other."""
