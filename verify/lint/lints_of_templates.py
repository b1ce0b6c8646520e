"""Lints of what a conversation becomes: special tokens and chat templates.

One row a lint: name, how bad it is, what it means, what to do. Part of the table in `lints.py`. A
template that a model was trained with is kept, whatever is wrong with it: hence the notes.
"""

from __future__ import annotations

from verify.lint.finding import Lint, Severity

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
TABLE = (
    Lint(
        "template-fails",
        ERROR,
        "a chat template renders nothing, not even one message of the user: every chat"
        " request fails",
        "restore the source's template; a server can be given another (--chat-template)",
    ),
    Lint(
        "template-bos-twice",
        ERROR,
        "a chat template writes the BOS twice; models answer worse, and no reader notices",
        "remove one of the two from the template",
    ),
    Lint(
        "template-copies-differ",
        WARNING,
        "two copies of a template differ, and readers do not take the same one",
        "make tokenizer_config.json and the .jinja files say the same",
    ),
    Lint(
        "tool-use-template-missing",
        WARNING,
        "no chat template renders tools: a server can offer none to the model",
        "add the source's tool_use template",
    ),
    Lint(
        "template-history-fails",
        WARNING,
        "a call and its result do not render: no conversation goes on after a call",
        "give the server a template that knows the role tool",
    ),
    Lint(
        "template-type-refused",
        WARNING,
        "a type of a tool's parameter that callers send stops the template (the published"
        " tool_use template calls itself without end)",
        "map the types of tools before they are rendered, as verify does with BFCL's",
    ),
    Lint(
        "template-optional-keys",
        WARNING,
        "a tool without a description or without parameters stops the template; OpenAI's API"
        " requires neither",
        "give every tool both",
    ),
    Lint(
        "template-content-dropped",
        WARNING,
        "what the assistant wrote beside a call is not in the next prompt: reasoning is lost",
        "know it, or serve with a template that keeps content",
    ),
    Lint(
        "template-empty-calls",
        WARNING,
        "a message with `tool_calls: []` renders as an empty turn, and its text is lost",
        "leave the key out where there are no calls",
    ),
    Lint(
        "template-array-items",
        NOTE,
        "a tool's signature does not tell what an array holds, though it tells the types of"
        " other parameters",
        "keep the template if the model was trained with it",
    ),
    Lint(
        "template-arguments-joined",
        NOTE,
        "the descriptions of a tool's parameters run together in one line",
        "keep the template if the model was trained with it",
    ),
    Lint(
        "template-brace-extra",
        NOTE,
        "a JSON text in the prompt ends with one closing brace too many",
        "keep the template if the model was trained with it",
    ),
    Lint(
        "template-brace-missing",
        NOTE,
        "a JSON text in the prompt, a tool's say, is never closed",
        "keep the template if the model was trained with it",
    ),
    Lint(
        "template-not-prefix-stable",
        NOTE,
        "a turn's prompt is not the beginning of the next turn's: a server computes the"
        " conversation again from there",
        "keep the template if the model was trained with it; expect less from prefix caches",
    ),
    Lint(
        "bos-postprocessor-lost",
        WARNING,
        "tokenizer_config.json names a BOS and tokenizer.json, which a tool rewrote, does not"
        " add it",
        "copy the source's tokenizer.json",
    ),
    Lint(
        "tool-tag-control",
        WARNING,
        "a tag of tool calls is a special token: it vanishes from text that is printed"
        " without them",
        'set "special" to false for it in tokenizer.json and tokenizer_config.json',
    ),
    Lint(
        "eos-differs",
        WARNING,
        "config.json, generation_config.json and the tokenizer have no end of turn in common:"
        " some engine will not stop",
        "name the token that ends a turn in all of them",
    ),
)
