"""Calibration text: conversations, as the model's own template renders them, in chunks.

In: a model folder and a JSONL file of conversations. Out: chunks of token ids, all of one length.
The renderings, each with the one BOS its template writes, follow one another and are cut every
`chunk_tokens` tokens; what is left over at the end is dropped. Where the template writes a BOS, the
first token of every chunk becomes one. That is what llama-imatrix does with a text
(`tools/imatrix/imatrix.cpp`); here tags such as <tool_call> are the special tokens they are when
the model is used, which llama-imatrix needs `--parse-special` for.

`BUNDLED` was written for this project: chat, tools, JSON and code in several languages. It serves
where no file is given, and is never used to measure anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from convert.conversation import read_conversations
from convert.errors import ConversationError, InputError
from convert.rendering import Tokenizer, render

BUNDLED = Path(__file__).parent / "calibration_data" / "conversations.jsonl"
CHUNK_TOKENS = 512
"""llama-imatrix's default context."""


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """Chunks of ids, each `chunk_tokens` long, and the file they came from."""

    name: str
    sha256: str
    conversations: int
    chunk_tokens: int
    chunks: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Tokens in all chunks."""
        return len(self.chunks) * self.chunk_tokens

    @property
    def ids_sha256(self) -> str:
        """Digest of the ids, chunk by chunk."""
        return hashlib.sha256(json.dumps(self.chunks).encode()).hexdigest()


def read_calibration_text(
    folder: Path, data: Path | None = None, chunk_tokens: int = CHUNK_TOKENS
) -> CalibrationText:
    """Render and cut a file of conversations (default: the bundled one) for the model in `folder`.

    Raises InputError when they do not fill one chunk.
    """
    if chunk_tokens < 2:
        raise InputError(f"chunks of {chunk_tokens} tokens; expected at least 2")
    path = data or BUNDLED
    conversations = read_conversations(path)
    tokenizer = Tokenizer.open(folder)
    try:
        rendered = [render(tokenizer, c, add_generation_prompt=False) for c in conversations]
    finally:
        tokenizer.close()
    bos = tokenizer.bos_id
    for conversation, ids in zip(conversations, rendered, strict=True):
        if bos is not None and bos in ids[1:]:
            raise ConversationError(
                f"{path}: conversation {conversation.id!r} holds the BOS token ({bos}) after its"
                " beginning; take it out of the text"
            )
    stream = [token for ids in rendered for token in ids]
    chunks = cut(stream, chunk_tokens, bos if rendered[0][:1] == [bos] else None)
    if not chunks:
        raise InputError(
            f"{path}: {len(stream)} tokens do not fill one chunk of {chunk_tokens}; add text, or"
            " pass --chunk-tokens"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return CalibrationText(path.name, digest, len(conversations), chunk_tokens, chunks)


def cut(stream: list[int], length: int, bos: int | None) -> tuple[tuple[int, ...], ...]:
    """Whole chunks of `length` ids, the first of each replaced by `bos` if there is one."""
    head = [] if bos is None else [bos]
    return tuple(
        (*head, *stream[start + len(head) : start + length])
        for start in range(0, len(stream) - length + 1, length)
    )
