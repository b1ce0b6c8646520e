"""Templates: does an artifact answer by the chat templates of its source, by these and no others?

In: the templates transformers would use for the reference, and a GGUF's header or a folder's files.
Every template must be the source's, to the character, and there must be none that the source has
not: without `tool_use`, llama.cpp prompts a Hermes model by the default template, which shows it no
tools; a chat_template.jinja that was added to a folder wins over everything in
tokenizer_config.json; an added `tool_use` wins wherever a request has tools.

Defects that the reference's own templates have (`template_defects.py`) are told with their names
and fail nothing: the model was trained with them. What a template renders to is `rendering.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from convert.chat_template import DEFAULT, TOOL_USE, read_templates
from convert.errors import InputError
from convert.gguf_reader import read_gguf
from verify.artifact import Artifact, Kind
from verify.check import Finding, Outcome, State, Verdict
from verify.evidence import Evidence
from verify.template_defects import find_defects

NAME = "templates"
KEY = "tokenizer.chat_template"


def check_templates(evidence: Evidence, /) -> Outcome:
    """Compare the artifact's templates with the reference's, and say what is wrong with them."""
    tokenizer = evidence.reference.tokenizer
    expected = tokenizer.templates.effective
    try:
        found = _templates_of(evidence.artifact)
    except InputError as error:
        verdict = Verdict(State.FAIL, "it cannot be read", {"templates": len(expected)})
        return Outcome(NAME, verdict, (Finding(evidence.artifact.name, str(error)),))
    if evidence.artifact.kind is Kind.GGUF:
        expected = {_name_in_gguf(name): text for name, text in expected.items()}
    different = tuple(_differences(evidence.artifact, expected, found))
    defects = tuple(_defects(expected, found, tokenizer.special_tokens))
    numbers = {"templates": len(expected), "different": len(different), "defects": len(defects)}
    if different:
        reason = f"{len(different)} of {len(expected.keys() | found.keys())} templates differ"
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), (*different, *defects))
    told = f"; defects of the reference's own: {len(defects)}" if defects else ""
    reason = f"all {len(expected)} are there, and no other{told}"
    return Outcome(NAME, Verdict(State.PASS, reason, numbers), defects)


def header_templates(fields: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a GGUF's header, by the names that llama.cpp asks for them."""
    named = {
        DEFAULT if key == KEY else key.removeprefix(f"{KEY}."): text
        for key, text in fields.items()
        if key == KEY or key.startswith(f"{KEY}.")
    }
    return {name: text for name, text in named.items() if isinstance(text, str)}


def _templates_of(artifact: Artifact) -> Mapping[str, str]:
    if artifact.kind is Kind.GGUF:
        return header_templates(read_gguf(artifact.path).fields)
    return read_templates(artifact.path).effective


def _name_in_gguf(name: str) -> str:
    """A template's name in GGUF; what is no ASCII letter or digit in it becomes `_`."""
    return re.sub("[^a-zA-Z0-9]", "_", name)


def _subject(artifact: Artifact, name: str) -> str:
    if artifact.kind is not Kind.GGUF:
        return f"template {name!r}"
    return KEY if name == DEFAULT else f"{KEY}.{name}"


def _differences(
    artifact: Artifact, expected: Mapping[str, str], found: Mapping[str, str]
) -> Iterator[Finding]:
    """Both ways: what is missing or other than the reference's, and what the reference has not."""
    for name, text in expected.items():
        if name not in found:
            yield Finding(_subject(artifact, name), "missing")
        elif found[name] != text:
            yield Finding(_subject(artifact, name), "is not the reference's template")
    for name in sorted(found.keys() - expected.keys()):
        wins = ", and it is used wherever there are tools" if name == TOOL_USE else ""
        yield Finding(_subject(artifact, name), f"the reference has none of this name{wins}")


def _defects(
    expected: Mapping[str, str], found: Mapping[str, str], special: Mapping[str, str]
) -> Iterator[Finding]:
    for defect in find_defects(found, special):
        name = defect.template
        own = "" if found[name] == expected.get(name) else " (of this artifact's template)"
        yield Finding(f"{defect.name} in {name!r}", f"{defect.found}{own}")
