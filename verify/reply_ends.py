"""Where a reply ends: the stop tokens of the reference against those of a GGUF in llama.cpp.

In: the reference, what its vocabulary would be in a GGUF, and the GGUF. Out: findings that are the
file's fault, and others worth knowing.

The one fact to know: generation_config.json lists any number of stop tokens, and a GGUF names one
EOS, one EOT and one EOM. llama.cpp ends replies at these and at every token whose text it knows
(`<|im_end|>`, `<|eot_id|>`, ...). So it may go on where the reference stops, which no answer in
`verify` would show, since engines are given the reference's stop tokens; and it may stop at a word:
Qwen's vocabulary has an ordinary token `</s>`, which ends a reply in every GGUF of it. Control
tokens are never part of a reply, so to end at more of them cuts nothing off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convert.rendering import stop_ids
from convert.tokenizer import TokenType, Vocabulary
from verify.check import Finding
from verify.evidence import Reference

if TYPE_CHECKING:
    from verify.engines.served_vocabulary import ServedVocabulary

ENDING = tuple(
    f"tokenizer.ggml.{kind}_token_id" for kind in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
)
"""Keys that make a token end replies in llama.cpp, beside EOS."""


def reply_ends(
    reference: Reference,
    expected: Vocabulary | None,
    fields: Mapping[str, Any],
    artifact: ServedVocabulary,
) -> tuple[list[Finding], list[Finding]]:
    """What is wrong with the file, and what is true of every GGUF of the model."""
    stops, ends = stop_ids(reference.checkpoint, reference.tokenizer), artifact.ends()
    wrong: list[Finding] = []
    notes: list[Finding] = []
    for token in sorted(stops - ends):
        message = (
            "ends the reference's replies, and llama.cpp generates on after it; make it"
            " tokenizer.ggml.eos_token_id or eot_token_id"
        )
        wrong.append(Finding(_subject(reference, token), message))
    types = expected.pieces.types if expected is not None else ()
    for token in sorted(ends - stops):
        if token >= len(types) or types[token] is TokenType.CONTROL:
            continue
        key = next((key for key in ENDING if fields.get(key) == token), None)
        because = f"it is {key}" if key else "it knows its text, in every GGUF of this model"
        found = Finding(_subject(reference, token), f"llama.cpp ends a reply at it: {because}")
        (wrong if key else notes).append(found)
    return wrong, notes


def _subject(reference: Reference, token: int) -> str:
    return f"token {token} ({reference.tokenizer.decode([token])!r})"
