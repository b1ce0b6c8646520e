"""The vocabulary of a checkpoint as GGUF stores it: tokens, types, merges, special ids.

Read from tokenizer.json (the `tokenizers` library's own file) and tokenizer_config.json. llama.cpp
splits text before merging by a named pre-tokenizer; which one a vocabulary needs is decided here by
its structure (the split pattern and `ignore_merges`), so that a fine-tune with more added tokens,
or a new vocabulary that splits like a known one, is recognised. Unknown splitting is an error that
shows the pattern: guessing would change token ids silently.

Ids without a token become `[PAD<id>]`, type UNUSED, as llama.cpp's converter writes them (Hermes 2
Pro pads its embedding beyond the vocabulary). An added token is CONTROL when it is special or looks
like `<|...|>`, else USER_DEFINED: control tokens vanish when text is detokenized, so `<tool_call>`
must not be one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeGuard

from convert.errors import CheckpointError, UnsupportedError
from convert.gguf import Field
from convert.model_spec import ModelSpec, read_json_object

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {(_LLAMA3_SPLIT, True): "llama-bpe", (_LLAMA3_SPLIT, False): "smaug-bpe"}
"""(split pattern, ignore_merges) to llama.cpp's name (its `llama-vocab.cpp` gives the patterns)."""

_SPECIAL_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}


class TokenType(IntEnum):
    """GGUF's token types."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A byte-level BPE vocabulary; `tokens[i]` is the text of id i in the byte-level alphabet."""

    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]
    add_special: Mapping[str, bool]

    def fields(self) -> list[Field]:
        """The GGUF fields, in the order in which llama.cpp's converter writes them."""
        fields = [
            Field("tokenizer.ggml.model", "str", "gpt2"),
            Field("tokenizer.ggml.pre", "str", self.pre),
            Field("tokenizer.ggml.tokens", "[str]", self.tokens),
            Field("tokenizer.ggml.token_type", "[i32]", self.types),
            Field("tokenizer.ggml.merges", "[str]", self.merges),
        ]
        fields += [Field(_SPECIAL_KEYS[kind], "u32", i) for kind, i in self.special_ids.items()]
        return fields + [
            Field(f"tokenizer.ggml.add_{kind}_token", "bool", value)
            for kind, value in self.add_special.items()
        ]


def read_vocabulary(folder: Path, spec: ModelSpec) -> Vocabulary:
    """Read the vocabulary of a checkpoint folder; raises when it cannot be told exactly."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedError(f"{path}: missing; a vocabulary is read from tokenizer.json only")
    raw = read_json_object(path)
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or "vocab" not in model:
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedError(f"{path}: a {kind} tokenizer; supported: byte-level BPE")
    added = _added_tokens(path, raw.get("added_tokens"))
    tokens, types = _tokens(path, model["vocab"], added, spec.vocab_size)
    config = _tokenizer_config(folder)
    return Vocabulary(
        pre=_recognise_splitting(path, raw.get("pre_tokenizer"), model),
        tokens=tokens,
        types=types,
        merges=_merges(path, model.get("merges")),
        special_ids=_special_ids(folder, spec, config, added),
        add_special=_add_special(path, raw.get("post_processor"), config),
    )


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _objects(path: Path, key: str, value: object) -> list[dict[str, Any]]:
    """A list of JSON objects; absent is empty."""
    found = [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise CheckpointError(f"{path}: {key} is malformed; expected a list of objects")
    return found


def _added_tokens(path: Path, value: object) -> dict[int, Mapping[str, Any]]:
    entries = _objects(path, "added_tokens", value)
    for entry in entries:
        if not _is_id(entry.get("id")) or not isinstance(entry.get("content"), str):
            raise CheckpointError(f"{path}: added token {entry!r} has no id or no content")
    return {entry["id"]: entry for entry in entries}


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return read_json_object(path) if path.is_file() else {}


def _tokens(
    path: Path, vocab: Mapping[str, int], added: Mapping[int, Mapping[str, Any]], size: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    if not isinstance(vocab, dict) or not all(_is_id(i) for i in vocab.values()):
        raise CheckpointError(f"{path}: model.vocab is malformed; expected token ids by text")
    ids: dict[int, str] = {}
    for i, text in (
        *((i, t) for t, i in vocab.items()),
        *((i, t["content"]) for i, t in added.items()),
    ):
        if ids.setdefault(i, text) != text:
            raise CheckpointError(f"{path}: token id {i} is both {ids[i]!r} and {text!r}")
    if max(ids, default=0) >= size:
        raise CheckpointError(
            f"{path}: has token id {max(ids)}, but config.json gives vocab_size {size}"
        )
    tokens = tuple(ids.get(i, f"[PAD{i}]") for i in range(size))
    first: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if first.setdefault(text, i) != i:
            raise CheckpointError(
                f"{path}: token {text!r} has ids {first[text]} and {i}; llama.cpp aborts on that"
            )
    return tokens, tuple(_type(i, ids, added) for i in range(size))


def _type(i: int, ids: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> TokenType:
    if i not in ids:
        return TokenType.UNUSED
    if i not in added:
        return TokenType.NORMAL
    looks_special = ids[i].startswith("<|") and ids[i].endswith("|>")
    special = added[i].get("special") or looks_special or ids[i] in ("<pad>", "<mask>")
    return TokenType.CONTROL if special else TokenType.USER_DEFINED


def _merges(path: Path, merges: object) -> tuple[str, ...]:
    """Merges as `left right`; in the list form a space inside a piece is written U+0120."""
    if not isinstance(merges, list) or not merges:
        raise CheckpointError(f"{path}: no merges; a BPE vocabulary cannot work without them")
    if all(isinstance(merge, str) for merge in merges):
        return tuple(merges)
    for pair in merges:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            raise CheckpointError(f"{path}: merge {pair!r} is not a pair of texts")
    return tuple(" ".join(piece.replace(" ", "\u0120") for piece in pair) for pair in merges)


def _recognise_splitting(path: Path, pre_tokenizer: object, model: Mapping[str, Any]) -> str:
    patterns = _split_patterns(path, pre_tokenizer)
    key = ("".join(patterns[:1]), bool(model.get("ignore_merges")))
    if len(patterns) != 1 or key not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"{path}: splits text in a way llama.cpp has no known name for here: patterns"
            f" {patterns!r}, ignore_merges {key[1]}"
        )
    return PRE_TOKENIZERS[key]


def _split_patterns(path: Path, pre_tokenizer: object) -> list[str]:
    if not isinstance(pre_tokenizer, dict):
        return []
    if pre_tokenizer.get("type") == "Sequence":
        steps = _objects(path, "pretokenizers", pre_tokenizer.get("pretokenizers"))
        return [pattern for step in steps for pattern in _split_patterns(path, step)]
    if pre_tokenizer.get("type") == "Split":
        pattern = pre_tokenizer.get("pattern")
        return [
            str(pattern["Regex"] if isinstance(pattern, dict) and "Regex" in pattern else pattern)
        ]
    if pre_tokenizer.get("type") == "ByteLevel" and not pre_tokenizer.get("use_regex", True):
        return []
    return [f"<{pre_tokenizer.get('type')}>"]


def _special_ids(
    folder: Path,
    spec: ModelSpec,
    config: Mapping[str, Any],
    added: Mapping[int, Mapping[str, Any]],
) -> dict[str, int]:
    """Special ids: tokenizer_config names the token; config.json's id only where it does not."""
    by_text = {str(token["content"]): i for i, token in added.items()}
    model_config = read_json_object(folder / "config.json")
    found: dict[str, int] = {}
    for kind in _SPECIAL_KEYS:
        token = config.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in by_text:
            found[kind] = by_text[text]
    for kind in _SPECIAL_KEYS:
        identifier = model_config.get(f"{kind}_token_id")
        if kind not in found and _is_id(identifier):
            if identifier >= spec.vocab_size:
                raise CheckpointError(
                    f"{folder / 'config.json'}: {kind}_token_id is {identifier}, but vocab_size is"
                    f" {spec.vocab_size}"
                )
            found[kind] = identifier
    return found


def _add_special(path: Path, post_processor: object, config: Mapping[str, Any]) -> dict[str, bool]:
    """Whether BOS, EOS and SEP are added, by the post-processor, else by tokenizer_config."""
    found: dict[str, bool] = {}
    if isinstance(post_processor, dict):
        steps = post_processor.get("processors") or [post_processor]
        for step in _objects(path, "post_processor", steps):
            if step.get("type") == "ByteLevel":
                found.setdefault("bos", False)
                found.setdefault("eos", False)
            if step.get("type") == "TemplateProcessing":
                found.update(_template_processing(path, step, config))
    for kind in ("bos", "eos", "sep"):
        value = config.get(f"add_{kind}_token")
        if kind not in found and isinstance(value, bool):
            found[kind] = value
    return found


def _template_processing(
    path: Path, step: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, bool]:
    def special(entries: list[dict[str, Any]], index: int) -> str | None:
        token = entries[index].get("SpecialToken") if entries else None
        name = token.get("id") if isinstance(token, dict) else None
        return name if isinstance(name, str) else None

    def text(kind: str) -> str | None:
        token = config.get(f"{kind}_token")
        return token.get("content") if isinstance(token, dict) else token

    single = _objects(path, "post_processor.single", step.get("single"))
    pair = _objects(path, "post_processor.pair", step.get("pair"))
    found: dict[str, bool] = {}
    first, last = special(single, 0), special(single, -1)
    if len(single) > 1 and first:
        found["bos"] = first == text("bos")
    if len(single) > 1 and last:
        found["eos"] = last == text("eos")
    inner = pair[1 if first else 0 : -1 if last else None]
    if len(inner) > 2 and "Sequence" in inner[0] and "Sequence" in inner[-1]:
        between = special(inner, 1)
        found["sep"] = between is not None and between in (text("sep"), text("eos")) and not last
    return found
