"""Tokens: does the artifact cut text into the same ids as the reference?

In: the reference's tokenizer and the artifact. For a GGUF the header must list the reference's
tokens, each of its type (a `<tool_call>` of type control vanishes from what llama.cpp prints),
llama.cpp must end a reply where the reference does, and both sides encode the same strings, the
suite's own prompts among them, to the same ids; llama.cpp parses special tokens and adds none here
(what it adds is looked at in `rendering.py`). For a folder the tokenizer's files must be the
source's, byte for byte, as must be every other file beside the weights except config.json; and no
file that loaders read by its name may have been added.

The strings are where tokenizers are known to part: each added token next to a newline, a space, a
quote and a brace; runs of digits; contractions; runs of white space; scripts without spaces;
characters made of several code points; and seeded mixtures of all of these. One wrong id in a
prompt moves every answer, and nothing else shows it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import InputError, UnsupportedError
from convert.gguf_reader import read_gguf
from convert.rendering import Tokenizer
from convert.tokenizer import Vocabulary, read_vocabulary
from verify.artifact import Artifact, Kind
from verify.check import Finding, Outcome, State, Verdict
from verify.evidence import Evidence
from verify.reply_ends import reply_ends

NAME = "tokens"
SEED = 20261121
RANDOM_STRINGS = 1000
PROMPTS_CHECKED = 100
FINDINGS_SHOWN = 10

PIECES = (
    "a", "The", " quick", "Straße", "naïve", "I'm", "we'LL", "don't", "HTTP", "camelCase", "x_y",
    "0", "7", "12", "123", "1234", "12345678901", "3.14", "-1e9", "1,000", "٣٤", "²",
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "\n ", "\u00a0", "\u3000",
    '"', "'", "{", "}", '{"name": "', '", "arguments": {', "}}", "[]", "\\n", '\\"', "<", ">", "</",
    ".", ",", "!?", "...", "---", "(", ")", "%", "#", "=>", "&amp;", "<|", "|>", "https://a.b/c?d=e",
    "東京都", "안녕하세요", "Привет", "שלום", "مرحبا", "नमस्ते", "ไทย", "é", "e\u0301",
    "😀", "👩‍💻", "🇩🇪", "✅", "\u200b", "\ufeff", "\U0001d4b3", "∑",
)  # fmt: skip
NEIGHBOURS = ("\n", " ", '"', "'", "{", "}", "a", "1", "é", "<", "")
VOCABULARY_LISTS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
ADDED_AROUND = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token")
READ_BY_LOADERS = (
    "added_tokens.json", "adapter_config.json", "chat_template.json", "chat_template.jinja",
    "generation_config.json", "hf_quant_config.json", "merges.txt", "params.json",
    "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tekken.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Files that transformers or vLLM opens because they are there: sampling, stop tokens, templates,
other vocabularies, an adapter to be laid over the weights, another format of the whole model."""
SPECIAL_IDS = {"bos_id": "tokenizer.ggml.bos_token_id", "eos_id": "tokenizer.ggml.eos_token_id"}


def check_tokens(evidence: Evidence, /) -> Outcome:
    """Compare ids (GGUF) or files (folder)."""
    try:
        if evidence.artifact.kind is Kind.GGUF:
            return _check_gguf(evidence)
        return _check_folder(evidence.reference.checkpoint, evidence.artifact)
    except InputError as error:
        verdict = Verdict(State.FAIL, "its tokenizer cannot be read", {"different": 1})
        return Outcome(NAME, verdict, (Finding(evidence.artifact.name, str(error)),))


def _check_gguf(evidence: Evidence) -> Outcome:
    from verify.engines.served_vocabulary import ServedVocabulary

    reference = evidence.reference
    vocabulary = ServedVocabulary(evidence.artifact.path)
    try:
        texts = list(token_strings(reference.tokenizer))
        texts += [
            reference.tokenizer.decode(prompt) for prompt in reference.prompts[:PROMPTS_CHECKED]
        ]
        fields = read_gguf(evidence.artifact.path).fields
        expected_vocabulary = _vocabulary(reference.checkpoint)
        findings = list(_special_findings(reference.tokenizer, fields))
        wrong, notes = reply_ends(reference, expected_vocabulary, fields, vocabulary)
        findings += wrong
        if expected_vocabulary is not None:
            adds = dict(zip(ADDED_AROUND, (vocabulary.adds_bos, vocabulary.adds_eos), strict=True))
            findings += _vocabulary_findings(expected_vocabulary, fields, adds)
        for text in texts:
            expected, found = reference.tokenizer.encode(text), vocabulary.encode(text)
            if expected != found:
                findings.append(Finding(repr(text), first_difference(expected, found)))
    finally:
        vocabulary.close()
    numbers = {"strings": len(texts), "different": len(findings)}
    return _outcome(findings, numbers, "same ids", notes)


def _vocabulary(source: Checkpoint) -> Vocabulary | None:
    """The reference's vocabulary as a GGUF would hold it, if we can write it ourselves."""
    try:
        return read_vocabulary(source.path, source.spec)
    except UnsupportedError:
        return None  # its ids are compared all the same


def _special_findings(tokenizer: Tokenizer, fields: Mapping[str, Any]) -> Iterator[Finding]:
    """BOS and EOS of a GGUF that are not the reference's."""
    for attribute, key in SPECIAL_IDS.items():
        expected = getattr(tokenizer, attribute)
        if expected is not None and fields.get(key) != expected:
            yield Finding(key, f"is {fields.get(key)}, the reference's is {expected}")


def _vocabulary_findings(
    expected: Vocabulary, fields: Mapping[str, Any], adds: Mapping[str, bool]
) -> Iterator[Finding]:
    """Tokens, their types and what is added around a text, where they are not the reference's.

    `adds` is what llama.cpp does. It has an answer of its own for a key that is missing, and other
    readers of the file have theirs.
    """
    for field in expected.fields():
        found = fields.get(field.key)
        if field.key in VOCABULARY_LISTS:
            if not isinstance(found, list) or len(found) != len(field.value):
                length = len(found) if isinstance(found, list) else "none"
                yield Finding(
                    field.key, f"{length} entries, the reference's has {len(field.value)}"
                )
                continue
            different = [i for i, value in enumerate(field.value) if found[i] != value]
            for i in different[:FINDINGS_SHOWN]:
                token = f"token {i} ({expected.pieces.tokens[i]!r})"
                yield Finding(field.key, f"{token} is {found[i]!r}, expected {field.value[i]!r}")
        elif field.key in adds and (field.value, field.value) != (adds[field.key], bool(found)):
            says = "missing" if found is None else f"is {found}"
            yield Finding(field.key, f"{says}, the reference's is {field.value}")


def first_difference(expected: Sequence[int], found: Sequence[int]) -> str:
    """Where two lists of ids part."""
    pairs = zip(expected, found, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    ours, theirs = list(expected[at : at + 4]), list(found[at : at + 4])
    return f"ids differ from place {at}: reference {ours}, artifact {theirs}"


def token_strings(tokenizer: Tokenizer) -> Iterator[str]:
    """Every piece alone, every added token beside each neighbour, and seeded mixtures."""
    added = tokenizer.added_tokens
    yield from PIECES
    for token in added:
        for neighbour in NEIGHBOURS:
            yield f"{neighbour}{token}{neighbour}"
    for first in added:
        yield "".join(f"{first}{second}" for second in added[:32])
    rng = random.Random(SEED)  # noqa: S311  not for secrets
    pool = (*PIECES, *added)
    for _ in range(RANDOM_STRINGS):
        yield "".join(rng.choice(pool) for _ in range(rng.randint(2, 12)))


def _check_folder(source: Checkpoint, artifact: Artifact) -> Outcome:
    names = [name for name in source.side_files() if name != "config.json"]
    findings = list(_different_files(source.path, artifact.path, names))
    added = [name for name in READ_BY_LOADERS if (artifact.path / name).exists()]
    findings += [
        Finding(n, "the source has none, and loaders read it") for n in added if n not in names
    ]
    numbers = {"files": len(names), "different": len(findings)}
    return _outcome(findings, numbers, "same files beside the weights")


def _different_files(source: Path, artifact: Path, names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        path = artifact / name
        if not path.is_file():
            yield Finding(name, "missing; the source has it")
        elif path.read_bytes() != (source / name).read_bytes():
            yield Finding(name, "is not the source's, byte for byte")


def _outcome(
    findings: list[Finding],
    numbers: dict[str, int],
    good: str,
    notes: Sequence[Finding] = (),
) -> Outcome:
    if not findings:
        return Outcome(NAME, Verdict(State.PASS, good, numbers), tuple(notes[:FINDINGS_SHOWN]))
    reason = f"{len(findings)} differences from the reference"
    return Outcome(NAME, Verdict(State.FAIL, reason, numbers), tuple(findings[:FINDINGS_SHOWN]))
