"""A GGUF's vocabulary as llama-server uses it: how a prompt is encoded, and what ends a reply.

In: a GGUF file. Out: `ServedVocabulary`, which adds to `LlamaVocabulary` what only the whole header
decides.

The one fact to know: llama-server (`common/chat.cpp`) takes a BOS off a rendered prompt if the
header says that one is added (`add_bos_token`), and likewise an EOS at its end, and then encodes
the text with both added. So a template and a tokenizer that both write a BOS come to one, as long
as the template's is the very first text; where they do not agree the prompt has two, or none.

What ends a reply (llama.cpp's end-of-generation set, `llama-vocab.cpp`) is the EOS, EOT and EOM of
the header and every token whose text llama.cpp knows (`<|im_end|>`, `<|eot_id|>` and the like); the
list of ids in generation_config.json is not in a GGUF at all.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp

from convert.errors import UnsupportedError
from verify.engines.llama_model import LlamaVocabulary

_PIECE_BYTES = 4096
_KINDS = (llama_cpp.LLAMA_VOCAB_TYPE_SPM, llama_cpp.LLAMA_VOCAB_TYPE_BPE)


class ServedVocabulary(LlamaVocabulary):
    """A GGUF's tokenizer with what is added around a prompt and what ends a reply."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.adds_eos: bool = llama_cpp.llama_vocab_get_add_eos(self._vocab)

    def ends(self) -> frozenset[int]:
        """Ids at which llama.cpp ends a reply."""
        ids = range(self.size)
        return frozenset(i for i in ids if llama_cpp.llama_vocab_is_eog(self._vocab, i))

    def text_of(self, token: int) -> str | None:
        """What templates get as `bos_token` or `eos_token`; None where there is no such token."""
        if token < 0:
            return None
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, 0, True)
        return buffer.raw[: max(count, 0)].decode("utf-8", "replace") or None

    def encode_served(self, prompt: str) -> list[int]:
        """Ids that llama-server makes of a rendered prompt.

        Raises UnsupportedError where llama.cpp would end the whole process: the header adds a token
        that the vocabulary has not, or the vocabulary is of a kind that no chat model has.
        """
        if (self.adds_bos and self.bos_id < 0) or (self.adds_eos and self.eos_id < 0):
            raise UnsupportedError("the header adds a BOS or EOS that is not in its vocabulary")
        if llama_cpp.llama_vocab_type(self._vocab) not in _KINDS:
            raise UnsupportedError("its vocabulary is neither BPE nor SentencePiece")
        if self.adds_bos:
            prompt = prompt.removeprefix(self.text_of(self.bos_id) or "")
        if self.adds_eos:
            prompt = prompt.removesuffix(self.text_of(self.eos_id) or "")
        return self.encode(prompt, add_special=True)
