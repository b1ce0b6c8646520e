"""The tokenizer's special tokens and the chat templates: what a conversation becomes.

Two sources of findings that other parts of this project have as well: `convert/tokenizer_lints.py`,
which `quantize` tells before it runs, and `verify/template_defects.py`, which renders probes in a
sandbox. Here they get a severity and a remedy. Templates that `transformers` would not use, because
there are others that win, are not rendered; that there are such is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator

from convert.chat_template import read_templates
from convert.errors import InputError
from convert.rendering import read_special_tokens
from convert.tokenizer import Vocabulary, read_vocabulary
from convert.tokenizer_lints import lint_tokenizer
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.stored_checkpoint import StoredCheckpoint
from verify.template_defects import find_defects

_ABOUT = {
    "bos-postprocessor-lost": ("tokenizer.json: post_processor", "one that adds the BOS"),
    "tool-tag-control": ("tokenizer.json: added_tokens", '"special": false for the tags of calls'),
    "eos-differs": ("eos_token_id", "one token that all of them name"),
    "template-copies-differ": ("chat templates", "one set, or equal copies"),
    "tool-use-template-missing": ("chat templates", "one that reads `tools`"),
}
"""What each lint of `convert/tokenizer_lints.py` is about, and what was expected."""
_EXPECTED = {
    "template-fails": "a prompt",
    "template-bos-twice": "one BOS",
    "template-history-fails": "a prompt",
    "template-type-refused": "a prompt",
    "template-optional-keys": "a prompt; only the name is required of a function",
    "template-content-dropped": "what the assistant said, and its call",
    "template-empty-calls": "what the assistant said",
    "template-array-items": "what it holds, as JSON Schema's items say",
    "template-arguments-joined": "a line each",
    "template-brace-extra": "JSON that closes once",
    "template-brace-missing": "JSON that closes",
    "template-not-prefix-stable": "the beginning of the next turn's prompt",
}


def lint_templates(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Special tokens, the templates' copies, and what the templates render."""
    folder = stored.path
    try:
        found = lint_tokenizer(folder, stored.spec, _vocabulary(stored))
        templates, special = read_templates(folder).effective, read_special_tokens(folder)
    except InputError as error:
        reason = str(error).removeprefix(f"{folder}/")
        yield finding("template-fails", "chat templates", reason, "files that can be read")
        return
    for lint in found:
        subject, expected = _ABOUT[lint.name]
        yield finding(lint.name, subject, lint.message, expected)
    for defect in find_defects(templates, special):
        subject = f"chat template {defect.template}"
        yield finding(defect.name, subject, defect.found, _EXPECTED[defect.name])


def _vocabulary(stored: StoredCheckpoint) -> Vocabulary | None:
    """The vocabulary, if the model and its tokenizer are understood."""
    if stored.spec is None:
        return None
    try:
        return read_vocabulary(stored.path, stored.spec)
    except InputError:
        return None  # a lint of the files says what is wrong with it
