"""The prompts that an artifact's own files make, as the engine it is made for would make them.

In: an artifact and conversations. Out: token ids, from the artifact's templates, special tokens and
vocabulary, where everything else in `verify` prompts every model with the reference's ids.

    folder   transformers' choice of template; the template's BOS and no other, which is what vLLM
             sends for /chat/completions (`add_special_tokens` false)
    GGUF     llama.cpp's choice: `tool_use` where there are tools, else the default; BOS and EOS
             texts by the header's ids; then llama-server's encoding (`served_vocabulary.py`)

Both are rendered by jinja2 in our sandbox. llama.cpp has a template engine of its own, and where
that one differs (it writes a float default 2.0 as 2) is not seen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from convert.chat_template import Templates, render_text
from convert.conversation import Conversation
from convert.errors import ConversationError
from convert.gguf_reader import read_gguf
from convert.rendering import Tokenizer, render
from convert.template_sandbox import Limits, TemplateSandbox
from verify.artifact import Artifact, Kind
from verify.templates import header_templates

if TYPE_CHECKING:
    from verify.engines.served_vocabulary import ServedVocabulary

LONGEST = 2_000_000
"""Characters of a prompt, some 500,000 tokens: llama.cpp gets no text without measure."""


class OwnPrompts(Protocol):
    """What makes prompts of an artifact's own files."""

    def ids(self, conversation: Conversation) -> list[int]:
        """The prompt. Raises InputError where the files make none."""
        ...

    def close(self) -> None:
        """End the sandbox, free the vocabulary."""
        ...


def open_prompts(artifact: Artifact) -> OwnPrompts:
    """Read an artifact's templates and vocabulary. Raises InputError."""
    if artifact.kind is not Kind.GGUF:
        return _FolderPrompts(Tokenizer.open(artifact.path))
    from verify.engines.served_vocabulary import ServedVocabulary

    return _HeaderPrompts(read_gguf(artifact.path).fields, ServedVocabulary(artifact.path))


class _FolderPrompts:
    """A folder's, as vLLM and transformers make them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def ids(self, conversation: Conversation) -> list[int]:
        """The prompt; two BOS at its front are an error."""
        return render(self._tokenizer, conversation)

    def close(self) -> None:
        """End the sandbox."""
        self._tokenizer.close()


class _HeaderPrompts:
    """A GGUF's, as llama-server makes them."""

    def __init__(self, fields: Mapping[str, Any], vocabulary: ServedVocabulary) -> None:
        self._templates = Templates(in_files=header_templates(fields))
        self._vocabulary = vocabulary
        self._sandbox = TemplateSandbox(Limits(characters=LONGEST))

    def ids(self, conversation: Conversation) -> list[int]:
        """The prompt with what llama.cpp adds around it."""
        vocabulary = self._vocabulary
        text = render_text(
            self._templates.choose(conversation),
            conversation,
            bos_token=vocabulary.text_of(vocabulary.bos_id),
            eos_token=vocabulary.text_of(vocabulary.eos_id),
            sandbox=self._sandbox,
        )
        try:
            return vocabulary.encode_served(text)
        except UnicodeEncodeError as error:
            raise ConversationError(
                "it writes half of a surrogate pair, which is no text"
            ) from error

    def close(self) -> None:
        """End the sandbox, free the vocabulary."""
        self._sandbox.close()
        self._vocabulary.close()
