"""Byte-level BPE vocabularies: tokens, merges, and the name llama.cpp has for their splitting.

llama.cpp splits text before merging by a named pre-tokenizer. Which one a vocabulary needs is
decided by its structure (the split patterns and `ignore_merges`), so that a fine-tune with more
added tokens, or a new vocabulary that splits like a known one, is recognised. Unknown splitting is
an error that shows the pattern: guessing would change token ids silently.

In: a parsed tokenizer.json. Out: `Pieces`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, UnsupportedError
from convert.tokenizer import (
    Pieces,
    TokenType,
    added_tokens,
    added_type,
    fill,
    ids_by_text,
    objects,
)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEED_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|"
    r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    (LLAMA3_SPLIT, True): "llama-bpe",
    (LLAMA3_SPLIT, False): "smaug-bpe",
    (QWEN2_SPLIT, False): "qwen2",
    (TEKKEN_SPLIT, True): "tekken",
    (SEED_SPLIT, False): "seed-coder",
}
"""(split pattern, ignore_merges) to llama.cpp's name (its `llama-vocab.cpp` gives the patterns)."""


def read_bpe(path: Path, raw: Mapping[str, Any], size: int) -> Pieces:
    """The pieces of a tokenizer.json, for a model of `size` token ids."""
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedError(f"{path}: a {kind} tokenizer; BPE and SentencePiece are supported")
    vocab = ids_by_text(path, model.get("vocab"))
    found = {i: (text, TokenType.NORMAL) for text, i in vocab.items()}
    for i, token in added_tokens(path, raw).items():
        text = token["content"]
        if found.get(i, (text,))[0] != text:
            raise CheckpointError(f"{path}: token id {i} is both {found[i][0]!r} and {text!r}")
        found[i] = (text, added_type(text, special=bool(token.get("special"))))
    tokens, types = fill(path, found, size)
    pre = _recognise_splitting(path, raw.get("pre_tokenizer"), model)
    return Pieces("gpt2", pre, tokens, types, merges=_merges(path, model.get("merges")))


def _merges(path: Path, merges: object) -> tuple[str, ...]:
    """Merges as `left right`; in the list form a space inside a piece is written U+0120."""
    if not isinstance(merges, list) or not merges:
        raise CheckpointError(f"{path}: no merges; a BPE vocabulary cannot work without them")
    if all(isinstance(merge, str) for merge in merges):
        return tuple(merges)
    return tuple(_joined(path, pair) for pair in merges)


def _joined(path: Path, pair: object) -> str:
    if not isinstance(pair, list) or len(pair) != 2:
        raise CheckpointError(f"{path}: merge {pair!r} is not a pair of texts")
    left, right = pair
    if not isinstance(left, str) or not isinstance(right, str):
        raise CheckpointError(f"{path}: merge {pair!r} is not a pair of texts")
    left, right = left.replace(" ", "\u0120"), right.replace(" ", "\u0120")
    return f"{left} {right}"


def _recognise_splitting(path: Path, pre_tokenizer: object, model: Mapping[str, Any]) -> str:
    patterns = split_patterns(path, pre_tokenizer)
    key = ("".join(patterns[:1]), bool(model.get("ignore_merges")))
    if len(patterns) != 1 or key not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{path}: splits text in a way that llama.cpp has no known name for: patterns"
            f" {patterns!r}, ignore_merges {key[1]}"
        )
    return PRE_TOKENIZERS[key]


def split_patterns(path: Path, pre_tokenizer: object) -> list[str]:
    """The regular expressions that isolate pieces of text; `<Type>` for what is not one."""
    if not isinstance(pre_tokenizer, dict):
        return []
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        steps = objects(path, "pretokenizers", pre_tokenizer.get("pretokenizers"))
        return [pattern for step in steps for pattern in split_patterns(path, step)]
    if kind == "Split":
        given = pre_tokenizer.get("pattern")
        pattern = given.get("Regex") if isinstance(given, dict) else None
        behavior, invert = pre_tokenizer.get("behavior"), pre_tokenizer.get("invert")
        if not isinstance(pattern, str) or (behavior, bool(invert)) not in _ISOLATING:
            return [f"<Split {pattern if isinstance(pattern, str) else given} {behavior}>"]
        return [pattern.replace("\r", r"\r").replace("\n", r"\n")]
    plain = not pre_tokenizer.get("use_regex", True) and not pre_tokenizer.get("add_prefix_space")
    return [] if kind == "ByteLevel" and plain else [f"<{kind}>"]


_ISOLATING = (("Isolated", False), ("Removed", True))
"""Splits that cut out every match of the pattern and keep it."""
