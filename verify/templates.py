"""Templates: does a GGUF carry the chat templates its source answers by?

In: the templates transformers would use for the reference, and a GGUF's header. Every one of them
must stand in the header, to the character: without `tool_use`, llama.cpp prompts a Hermes model by
the default template, which shows it no tools. A folder's templates are files, and the tokens check
compares files. What a template renders to is not looked at here.
"""

from __future__ import annotations

import re

from convert.chat_template import DEFAULT
from convert.errors import InputError
from convert.gguf_reader import read_gguf
from verify.artifact import Kind
from verify.check import Finding, Outcome, State, Verdict
from verify.evidence import Evidence

NAME = "templates"
KEY = "tokenizer.chat_template"


def check_templates(evidence: Evidence, /) -> Outcome:
    """Compare the templates in a GGUF's header with the reference's."""
    expected = evidence.reference.tokenizer.templates.effective
    numbers = {"templates": len(expected)}
    if evidence.artifact.kind is not Kind.GGUF:
        return Outcome(NAME, Verdict(State.PASS, "compared as files, see tokens", numbers))
    try:
        fields = read_gguf(evidence.artifact.path).fields
    except InputError as error:
        verdict = Verdict(State.FAIL, "it cannot be read", numbers)
        return Outcome(NAME, verdict, (Finding(evidence.artifact.name, str(error)),))
    findings = [
        Finding(key, "missing" if key not in fields else "is not the reference's template")
        for name, text in expected.items()
        if fields.get(key := _key(name)) != text
    ]
    if findings:
        reason = f"{len(findings)} of {len(expected)} templates differ"
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), tuple(findings))
    return Outcome(NAME, Verdict(State.PASS, f"all {len(expected)} are there", numbers))


def _key(name: str) -> str:
    """A template's key in GGUF; what is no ASCII letter or digit in its name becomes `_`."""
    return KEY if name == DEFAULT else f"{KEY}.{re.sub('[^a-zA-Z0-9]', '_', name)}"
