"""From a conversation to token ids: the one way prompts are made, for every engine.

In: a model folder with tokenizer.json, and a `Conversation`. Out: the ids transformers'
`apply_chat_template(tokenize=True)` gives, without transformers. Calibration, abliteration and
verify all prompt through here, and engines get ids, never text, so that a difference between two
artifacts is never a difference between two tokenizers.

The one fact to know: the template writes the BOS token, not the tokenizer. The text is therefore
encoded with `add_special_tokens=False`, a template that writes no BOS gets none (as transformers
has it), and two at the front, which models answer worse and no reader notices, are an error.

`Tokenizer` wraps the `tokenizers` library. What it takes from tokenizer_config.json is the names of
the special tokens; an added token found there and not in tokenizer.json is refused, because readers
differ on whether it exists. `convert/tokenizer.py` is about vocabularies inside GGUF files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from convert.chat_template import CONFIG_NAME, Templates, read_templates, render_text
from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.errors import CheckpointError, ConversationError, UnsupportedError
from convert.model_spec import read_json_object
from convert.template_sandbox import TemplateSandbox

TOKENIZER_NAME = "tokenizer.json"
_SUBWORD_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')
LEGACY_NAME = "special_tokens_map.json"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model folder's tokenizer, its special tokens by name, and its chat templates."""

    folder: Path
    templates: Templates
    special_tokens: Mapping[str, str]
    _backend: tokenizers.Tokenizer = field(repr=False)
    _sandbox: TemplateSandbox = field(repr=False, default_factory=TemplateSandbox)

    @classmethod
    def open(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and the templates of a model folder."""
        path = folder / TOKENIZER_NAME
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; a fast tokenizer (tokenizer.json) is needed")
        backend = _read_backend(path)
        backend.no_padding()
        backend.no_truncation()
        config_path = folder / CONFIG_NAME
        config = read_json_object(config_path) if config_path.is_file() else {}
        _check_added_tokens(backend, config, config_path)
        return cls(folder, read_templates(folder), read_special_tokens(folder), backend)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, special tokens in it recognised, none added."""
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise ConversationError(f"text with half of a surrogate pair: {text!r:.80}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens kept: a tag is part of the reply."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        """The id of one token's text, or None if the vocabulary lacks it."""
        return _token_id(self._backend, token)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts of the added tokens (control tokens, tags), by id."""
        found = self._backend.get_added_tokens_decoder()
        return tuple(str(found[number].content) for number in sorted(found))

    @property
    def bos_id(self) -> int | None:
        """The id of the BOS token, if the folder names one."""
        name = self.special_tokens.get("bos_token")
        return None if name is None else self.token_id(name)

    @property
    def eos_id(self) -> int | None:
        """The id of the EOS token, if the folder names one."""
        name = self.special_tokens.get("eos_token")
        return None if name is None else self.token_id(name)

    def render_text(self, conversation: Conversation, add_generation_prompt: bool = True) -> str:
        """The prompt as text, by this folder's own template."""
        return render_text(
            self.templates.choose(conversation),
            conversation,
            bos_token=self.special_tokens.get("bos_token"),
            eos_token=self.special_tokens.get("eos_token"),
            add_generation_prompt=add_generation_prompt,
            special_tokens=self.special_tokens,
            sandbox=self._sandbox,
        )

    def close(self) -> None:
        """End the template sandbox; the tokenizer stays usable."""
        self._sandbox.close()


def render(
    tokenizer: Tokenizer, conversation: Conversation, *, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of the prompt, BOS as the template wrote it.

    Raises ConversationError where the template fails or the prompt begins with two BOS tokens.
    """
    ids = tokenizer.encode(tokenizer.render_text(conversation, add_generation_prompt))
    bos = tokenizer.bos_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise ConversationError(
            f"conversation {conversation.id!r}: the prompt begins with two BOS tokens ({bos}); "
            "the template must write one"
        )
    return ids


def stop_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a reply: those of generation_config.json, config.json and the tokenizer."""
    path = checkpoint.path / "generation_config.json"
    stated = read_json_object(path).get("eos_token_id") if path.is_file() else None
    found = {i for i in (stated if isinstance(stated, list) else [stated]) if isinstance(i, int)}
    found.update(checkpoint.spec.eos_token_ids)
    if tokenizer.eos_id is not None:
        found.add(tokenizer.eos_id)
    return frozenset(found)


def _token_id(backend: tokenizers.Tokenizer, token: str) -> int | None:
    try:
        found: int | None = backend.token_to_id(token)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold, is no token
        return None
    return found


def read_special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token` and the like: tokenizer_config.json first, then the older map beside it."""
    found: dict[str, str] = {}
    for path in (folder / LEGACY_NAME, folder / CONFIG_NAME):
        for key, value in (read_json_object(path) if path.is_file() else {}).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if _SUBWORD_PREFIX.search(raw):  # tokenizers 0.23 ends the whole process on some of them
        raise UnsupportedError(
            f"{path}: continuing_subword_prefix is not empty; the tokenizers of the supported"
            " families have none"
        )
    try:
        return tokenizers.Tokenizer.from_buffer(raw)
    except BaseException as error:  # the library raises Exception, and PanicException beside it
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise CheckpointError(f"{path}: not a tokenizer this version reads: {error}") from error


def _check_added_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], path: Path
) -> None:
    listed = config.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        raise CheckpointError(f"{path}: added_tokens_decoder is malformed; expected tokens by id")
    for number, token in listed.items():
        content = token.get("content") if isinstance(token, dict) else token
        found = _token_id(backend, content) if isinstance(content, str) else None
        if str(found) != str(number):
            raise UnsupportedError(
                f"{path}: added token {content!r} is {number} here and {found} in "
                f"{TOKENIZER_NAME}; make the two files agree"
            )
