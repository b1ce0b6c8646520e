"""The vocabulary of a checkpoint as GGUF stores it: tokens, types, special ids.

Which of the two kinds a checkpoint has is told by its files: a `tokenizer.model`, or a
tokenizer.json with byte fallback, is SentencePiece (`convert/spm.py`); any other tokenizer.json is
byte-level BPE (`convert/bpe.py`). Special ids and whether BOS, EOS or SEP are added are read here,
from tokenizer.json's post-processor, tokenizer_config.json and config.json.

Ids without a token become `[PAD<id>]`, type UNUSED, as llama.cpp's converter writes them (Hermes 2
Pro pads its embedding beyond the vocabulary). An added token is CONTROL when it is special or looks
like `<|...|>`, else USER_DEFINED: control tokens vanish when text is detokenized, so `<tool_call>`
must not be one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeGuard

from convert.errors import CheckpointError
from convert.gguf import Field
from convert.model_spec import ModelSpec, read_json_object

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
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a vocabulary is made of; `tokens[i]` is the text of id i in the vocabulary's alphabet.

    BPE has `merges` and no `scores`, SentencePiece the reverse.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The pieces, the special ids by kind, and which of them are added around a text."""

    pieces: Pieces
    special_ids: Mapping[str, int]
    add_special: Mapping[str, bool]
    add_space_prefix: bool | None = None

    def fields(self) -> list[Field]:
        """The GGUF fields, in the order in which llama.cpp's converter writes them."""
        pieces = self.pieces
        fields = []
        if self.add_space_prefix is not None:
            key = "tokenizer.ggml.add_space_prefix"
            fields.append(Field(key, "bool", self.add_space_prefix))
        fields += [
            Field("tokenizer.ggml.model", "str", pieces.model),
            Field("tokenizer.ggml.pre", "str", pieces.pre),
            Field("tokenizer.ggml.tokens", "[str]", pieces.tokens),
        ]
        if pieces.scores:
            fields.append(Field("tokenizer.ggml.scores", "[f32]", pieces.scores))
        fields.append(Field("tokenizer.ggml.token_type", "[i32]", pieces.types))
        if pieces.merges:
            fields.append(Field("tokenizer.ggml.merges", "[str]", pieces.merges))
        fields += [Field(_SPECIAL_KEYS[kind], "u32", i) for kind, i in self.special_ids.items()]
        return fields + [
            Field(f"tokenizer.ggml.add_{kind}_token", "bool", value)
            for kind, value in self.add_special.items()
        ]


def read_vocabulary(folder: Path, spec: ModelSpec) -> Vocabulary:
    """Read the vocabulary of a checkpoint folder; raises when it cannot be told exactly."""
    from convert.bpe import read_bpe
    from convert.spm import is_spm_json, read_spm_json, read_spm_model

    path = folder / "tokenizer.json"
    raw = read_json_object(path) if path.is_file() else {}
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path) if config_path.is_file() else {}
    if (folder / "tokenizer.model").is_file():
        pieces = read_spm_model(folder, config, spec.vocab_size)
    elif not raw:
        raise CheckpointError(f"{path}: missing, and there is no tokenizer.model either")
    elif is_spm_json(raw):
        pieces = read_spm_json(path, raw, spec.vocab_size)
    else:
        pieces = read_bpe(path, raw, spec.vocab_size)
    prefix = config.get("add_prefix_space")
    return Vocabulary(
        pieces=pieces,
        special_ids=_special_ids(folder, config, raw, spec.vocab_size),
        add_special=_add_special(path, raw.get("post_processor"), config),
        add_space_prefix=prefix if isinstance(prefix, bool) else None,
    )


def added_type(token: str, *, special: bool) -> TokenType:
    """The type of an added token; what looks special is taken to be, as llama.cpp takes it."""
    looks_special = token.startswith("<|") and token.endswith("|>")
    control = special or looks_special or token in ("<pad>", "<mask>")
    return TokenType.CONTROL if control else TokenType.USER_DEFINED


def fill(
    path: Path, found: Mapping[int, tuple[str, TokenType]], size: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    """Tokens and types of ids 0 to `size`, holes filled.

    An id beyond `size` is an error, and so is a text with two ids: llama.cpp aborts on that.
    """
    if max(found, default=0) >= size:
        raise CheckpointError(
            f"{path}: has token id {max(found)}, but config.json gives vocab_size {size}"
        )
    hole = TokenType.UNUSED
    pieces = [found.get(i, (f"[PAD{i}]", hole)) for i in range(size)]
    first: dict[str, int] = {}
    for i, (text, _) in enumerate(pieces):
        if first.setdefault(text, i) != i:
            raise CheckpointError(
                f"{path}: token {text!r} has ids {first[text]} and {i}; llama.cpp aborts on that"
            )
    return tuple(text for text, _ in pieces), tuple(kind for _, kind in pieces)


def added_tokens(path: Path, raw: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """tokenizer.json's added tokens by id."""
    entries = objects(path, "added_tokens", raw.get("added_tokens"))
    for entry in entries:
        if not is_id(entry.get("id")) or not isinstance(entry.get("content"), str):
            raise CheckpointError(f"{path}: added token {entry!r} has no id or no content")
    return {entry["id"]: entry for entry in entries}


def is_id(value: object) -> TypeGuard[int]:
    """Whether a JSON value can be a token id."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def objects(path: Path, key: str, value: object) -> list[dict[str, Any]]:
    """A list of JSON objects; absent is empty."""
    found = [] if value is None else value
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise CheckpointError(f"{path}: {key} is malformed; expected a list of objects")
    return found


def ids_by_text(path: Path, vocab: object, what: str = "model.vocab") -> dict[str, int]:
    """tokenizer.json's `model.vocab`, checked; no id may have two texts."""
    if not isinstance(vocab, dict) or not all(is_id(i) for i in vocab.values()):
        raise CheckpointError(f"{path}: {what} is malformed; expected token ids by text")
    texts: dict[int, str] = {}
    for text, i in vocab.items():
        if texts.setdefault(i, text) != text:
            raise CheckpointError(f"{path}: token id {i} is both {texts[i]!r} and {text!r}")
    return vocab


def token_text(config: Mapping[str, Any], kind: str) -> str | None:
    """The text of tokenizer_config's `<kind>_token`, which is a string or an object."""
    token = config.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _special_ids(
    folder: Path, config: Mapping[str, Any], raw: Mapping[str, Any], vocab_size: int
) -> dict[str, int]:
    """Special ids: tokenizer_config names the token; config.json's id only where it does not."""
    added = added_tokens(folder / "tokenizer.json", raw)
    by_text = {token["content"]: i for i, token in reversed(added.items())}
    model_config = read_json_object(folder / "config.json")
    found: dict[str, int] = {}
    for kind in _SPECIAL_KEYS:
        text = token_text(config, kind)
        if text in by_text:
            found[kind] = by_text[text]
            if found[kind] >= vocab_size:  # tokenizer.model gives the tokens, where there is one
                raise CheckpointError(
                    f"{folder / 'tokenizer.json'}: the id of {text!r} is {found[kind]}, but"
                    f" vocab_size is {vocab_size}"
                )
    for kind in _SPECIAL_KEYS:
        identifier = model_config.get(f"{kind}_token_id")
        if kind not in found and is_id(identifier):
            if identifier >= vocab_size:
                raise CheckpointError(
                    f"{folder / 'config.json'}: {kind}_token_id is {identifier}, but vocab_size is"
                    f" {vocab_size}"
                )
            found[kind] = identifier
    return found


def _add_special(path: Path, post_processor: object, config: Mapping[str, Any]) -> dict[str, bool]:
    """Whether BOS, EOS and SEP are added, by the post-processor, else by tokenizer_config."""
    found: dict[str, bool] = {}
    if isinstance(post_processor, dict):
        steps = post_processor.get("processors") or [post_processor]
        for step in objects(path, "post_processor", steps):
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
    single = objects(path, "post_processor.single", step.get("single"))
    pair = objects(path, "post_processor.pair", step.get("pair"))
    found: dict[str, bool] = {}
    first, last = _special_at(single, 0), _special_at(single, -1)
    if len(single) > 1 and first:
        found["bos"] = first == token_text(config, "bos")
    if len(single) > 1 and last:
        found["eos"] = last == token_text(config, "eos")
    inner = pair[1 if first else 0 : -1 if last else None]
    if len(inner) > 2 and "Sequence" in inner[0] and "Sequence" in inner[-1]:
        separators = (token_text(config, "sep"), token_text(config, "eos"))
        between = _special_at(inner, 1)
        found["sep"] = between is not None and between in separators and not last
    return found


def _special_at(entries: Sequence[Any], index: int) -> str | None:
    token = entries[index].get("SpecialToken") if entries else None
    name = token.get("id") if isinstance(token, dict) else None
    return name if isinstance(name, str) else None
