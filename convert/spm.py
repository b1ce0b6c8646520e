"""SentencePiece vocabularies: Llama 2 and the older Mistral Hermes.

From `tokenizer.model`, with added_tokens.json and tokenizer_config's added_tokens_decoder laid over
it, as llama.cpp's converter does. Or from a tokenizer.json of the same origin (BPE with byte
fallback): it holds no scores but merges in their order, and since SentencePiece's BPE joins the
pair with the highest score first, the score of a piece is minus the rank of the merge that makes
it. (llama.cpp's converter writes -1000 for all of them, and its token ids then differ.)

In: a checkpoint folder. Out: `Pieces`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.chat_template import CONFIG_NAME
from convert.errors import CheckpointError
from convert.model_spec import read_json_object
from convert.tokenizer import Pieces, TokenType, added_tokens, added_type, fill, ids_by_text

ADDED_SCORE, HOLE_SCORE = -1000.0, -10000.0
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_ID = re.compile(r"[0-9]{1,9}")
_SPACE = "\u2581"


def is_spm_json(raw: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json came from SentencePiece: BPE that falls back to byte tokens."""
    model = raw.get("model")
    return isinstance(model, dict) and bool(model.get("byte_fallback"))


def read_spm_model(folder: Path, config: Mapping[str, Any], size: int) -> Pieces:
    """The pieces of `tokenizer.model`, for a model of `size` token ids."""
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(path))
        ids = range(processor.vocab_size())
        found = {i: (processor.IdToPiece(i), _model_type(processor, i)) for i in ids}
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}") from error
    scores: dict[int, float] = {i: processor.GetScore(i) for i in ids}
    for i, text, kind in _laid_over(folder, config):
        found[i], scores[i] = (text, kind), ADDED_SCORE
    tokens, types = fill(path, found, size)
    return Pieces("llama", "default", tokens, types, scores=_scores(scores, size))


def _model_type(processor: Any, i: int) -> TokenType:
    if processor.IsUnknown(i):
        return TokenType.UNKNOWN
    if processor.IsControl(i):
        return TokenType.CONTROL
    if processor.IsUnused(i):
        return TokenType.UNUSED
    return TokenType.BYTE if processor.IsByte(i) else TokenType.NORMAL


def _laid_over(folder: Path, config: Mapping[str, Any]) -> list[tuple[int, str, TokenType]]:
    """Added tokens from both places they are written to, the later one winning."""
    added_path = folder / "added_tokens.json"
    added = read_json_object(added_path) if added_path.is_file() else {}
    ids = ids_by_text(added_path, added, "added tokens")
    found = [(i, text, TokenType.USER_DEFINED) for text, i in ids.items()]
    path, listed = folder / CONFIG_NAME, config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is malformed; expected tokens by id")
    for key, token in listed.items():
        text = token.get("content") if isinstance(token, dict) else None
        if not _ID.fullmatch(key) or not isinstance(text, str):
            raise CheckpointError(f"{path}: added token {key!r}: {token!r} has no id or no content")
        kind = added_type(text, special=bool(token.get("special")))
        shown = text if kind is TokenType.CONTROL else text.replace(_SPACE, " ")
        found.append((int(key), shown, kind))
    return found


def read_spm_json(path: Path, raw: Mapping[str, Any], size: int) -> Pieces:
    """The pieces of a tokenizer.json of SentencePiece origin."""
    model = raw["model"]
    vocab = ids_by_text(path, model.get("vocab"))
    merges = model.get("merges")
    if not isinstance(merges, list) or not merges:
        raise CheckpointError(f"{path}: model.merges is missing or empty")
    found = {i: (text, _json_type(text, model.get("unk_token"))) for text, i in vocab.items()}
    scores = dict.fromkeys(found, 0.0)
    for rank, merge in reversed(list(enumerate(merges))):
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(pair, list) or not all(isinstance(text, str) for text in pair):
            raise CheckpointError(f"{path}: merge {merge!r} is not a pair of texts")
        piece = "".join(pair)
        if piece in vocab:  # several merges can make one piece: the first of them counts
            scores[vocab[piece]] = -1.0 - rank
    for i, token in added_tokens(path, raw).items():
        text = token["content"]
        if i not in found or found[i][1] is TokenType.NORMAL:
            found[i] = (text, added_type(text, special=bool(token.get("special"))))
            scores[i] = ADDED_SCORE
    tokens, types = fill(path, found, size)
    return Pieces("llama", "default", tokens, types, scores=_scores(scores, size))


def _json_type(text: str, unknown: object) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL


def _scores(scores: Mapping[int, float], size: int) -> tuple[float, ...]:
    return tuple(scores.get(i, HOLE_SCORE) for i in range(size))
