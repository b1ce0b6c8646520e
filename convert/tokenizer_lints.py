"""What is suspicious about a checkpoint's tokenizer and templates, each finding with a name.

Read from the folder alone, before anything is converted; nothing here stops a run. Each of these
has shipped in a published model and broken it in one engine and not in another:

    bos-postprocessor-lost       tokenizer_config wants a BOS, tokenizer.json adds none
    tool-tag-control             a tool tag is a control token: it vanishes when text is detokenized
    eos-differs                  config, generation_config and tokenizer end a turn differently
    template-copies-differ       two copies of a template differ; transformers and llama.cpp's
                                 converter read different ones
    tool-use-template-missing    no template renders tools
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.chat_template import TOOL_USE, read_templates
from convert.model_spec import ModelSpec, read_json_object
from convert.tokenizer import TokenType, Vocabulary, is_id, token_text

TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tools>", "</tools>", "<tool_response>")


@dataclass(frozen=True, slots=True)
class Lint:
    """A finding: its name, and what was found."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def lint_tokenizer(
    folder: Path, spec: ModelSpec | None, vocabulary: Vocabulary | None
) -> tuple[Lint, ...]:
    """Every finding about a checkpoint folder; without a vocabulary, only about its templates."""
    config = _json(folder / "tokenizer_config.json")
    if spec is None or vocabulary is None:
        return tuple(_templates(folder))
    return (
        *_bos(folder, config, vocabulary),
        *_tags(vocabulary),
        *_eos(folder, config, spec, vocabulary),
        *_templates(folder),
    )


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _bos(folder: Path, config: dict[str, Any], vocabulary: Vocabulary) -> Iterator[Lint]:
    bos = token_text(config, "bos")
    if bos is None or vocabulary.pieces.model != "gpt2" or config.get("add_bos_token") is False:
        return
    if not vocabulary.add_special.get("bos") and vocabulary.pieces.pre == "llama-bpe":
        yield Lint(
            "bos-postprocessor-lost",
            f"tokenizer.json adds no {bos}, as Llama-3's does; a tool rewrote it. llama.cpp adds"
            " one and transformers does not",
        )


def _tags(vocabulary: Vocabulary) -> Iterator[Lint]:
    typed = set(zip(vocabulary.pieces.tokens, vocabulary.pieces.types, strict=True))
    control = [t for t in TOOL_TAGS if (t, TokenType.CONTROL) in typed]
    if control:
        yield Lint(
            "tool-tag-control",
            f"{', '.join(control)} are special tokens: they vanish from text that is detokenized"
            " without special tokens, and no parser finds the call",
        )


def _eos(
    folder: Path, config: dict[str, Any], spec: ModelSpec, vocabulary: Vocabulary
) -> Iterator[Lint]:
    generation = _json(folder / "generation_config.json").get("eos_token_id")
    listed = generation if isinstance(generation, list) else [generation]
    generated = {token for token in listed if is_id(token)}
    tokenizer = vocabulary.special_ids.get("eos")
    told: dict[str, set[int]] = {
        "config.json": set(spec.eos_token_ids),
        "generation_config.json": generated,
        "tokenizer_config.json": set() if tokenizer is None else {tokenizer},
    }
    told = {place: ids for place, ids in told.items() if ids}
    if len(told) > 1 and not set.intersection(*told.values()):
        said = "; ".join(f"{place} says {sorted(ids)}" for place, ids in told.items())
        name = token_text(config, "eos")
        yield Lint("eos-differs", f"{said} (the tokenizer's is {name}); some engine will not stop")


def _templates(folder: Path) -> Iterator[Lint]:
    templates = read_templates(folder)
    if templates.conflicts:
        yield Lint(
            "template-copies-differ",
            f"{', '.join(templates.conflicts)}: the .jinja files and tokenizer_config.json differ;"
            " transformers and vLLM use the files, llama.cpp's converter the config. The files"
            " are used here for every output",
        )
    texts = templates.effective
    if texts and TOOL_USE not in texts and not any("tools" in text for text in texts.values()):
        yield Lint(
            "tool-use-template-missing",
            "no chat template renders tools: a server cannot offer any to the model",
        )
