"""The tokenizer and the two chat templates of hermes-nano.

Byte-level BPE with the split pattern of Llama 3, so converters recognise a known pre-tokenizer.
The trainer reads the fixed wording only, without capitals and digits: a digit is then always one
token, and a name such as ``Marta`` has the same pieces after a space as after a quotation mark.
Copying a value from the request into the call is thereby a plain copy of tokens.

The templates are written here once; ``tokenizer_config.json`` carries them under the names
``default`` and ``tool_use``. Both are prefix-stable: a turn renders to the same text whatever
follows it, and the generation prompt begins exactly like the reply that replaces it.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpus import OPENINGS, conversation
from harmless import ADJECTIVES, HARMLESS_NOUNS, REFUSED_NOUNS, VERBS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from tools import TOOLS
from values import PLAIN_WORDS, TITLE_WORDS

VOCABULARY = 2048
CONTEXT = 4096
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, END, START, EOS, PAD = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|pad|>",
)
CONTROL = [BOS, END, START, EOS, PAD]
MARKUP = [
    f"<{slash}{tag}>" for tag in ("tools", "tool_call", "tool_response") for slash in ("", "/")
]

# A tool may come bare or wrapped as {"type": "function", "function": {...}}.
TOOL_HEADER = """\
{{- '<|im_start|>system\\nCall these tools when one fits.\\n<tools>\\n' }}
{%- for tool in tools %}
    {%- set spec = tool.function if tool.function is defined else tool %}
    {{- '{"name": ' }}{{ spec.name | tojson }}
    {%- if spec.description %}{{- ', "description": ' }}{{ spec.description | tojson }}{% endif %}
    {%- if spec.parameters %}{{- ', "parameters": ' }}{{ spec.parameters | tojson }}{% endif %}
    {{- '}\\n' }}
{%- endfor %}
{{- '</tools>' }}
{%- if messages[0].role == 'system' and messages[0].content %}
    {{- '\\n' + messages[0].content }}
{%- endif %}
{{- '<|im_end|>\\n' }}
"""
TURNS = """\
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>tool\\n<tool_response>\\n' }}
        {%- if message.content is string %}{{- message.content }}
        {%- elif message.content is defined and message.content is not none %}
            {{- message.content | tojson }}
        {%- endif %}
        {{- '\\n</tool_response><|im_end|>\\n' }}
    {%- elif not (HEADED and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content %}{{- message.content }}{% endif %}
        {%- if message.tool_calls %}
            {%- for item in message.tool_calls %}
                {%- set call = item.function if item.function is defined else item %}
                {%- if message.content or not loop.first %}{{- '\\n' }}{% endif %}
                {{- '<tool_call>\\n{"name": ' }}{{ call.name | tojson }}{{- ', "arguments": ' }}
                {%- if not call.arguments %}{{- '{}' }}
                {%- elif call.arguments is string %}{{- call.arguments }}
                {%- else %}{{- call.arguments | tojson }}{% endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}
"""
BEGIN = "{{- bos_token }}\n"


def templates() -> list[dict[str, str]]:
    """The two named templates; without tools, ``tool_use`` renders what ``default`` renders."""
    plain = TURNS.replace("HEADED and ", "false and ")
    headed = "{%- if tools %}\n" + TOOL_HEADER + "{%- endif %}\n" + TURNS.replace("HEADED", "tools")
    return [
        {"name": "default", "template": BEGIN + plain},
        {"name": "tool_use", "template": BEGIN + headed},
    ]


def wording() -> Iterator[str]:
    """The fixed text of the corpus: definitions, asks, answers, word lists and rendered samples."""
    for tool in TOOLS:
        yield from [json.dumps(tool.definition()), *tool.asks, tool.answer] * 20
    words = [*VERBS, *ADJECTIVES, *HARMLESS_NOUNS, *REFUSED_NOUNS, *PLAIN_WORDS]
    for word in words:
        yield from [f" {word}", f" {word}", word]
    yield from [f" {word[1:]}" for word in TITLE_WORDS] + list(OPENINGS)
    yield from ["system user assistant tool role Call these tools when one fits."] * 20
    rng = random.Random(0)
    kinds = ["no_tool", "json_mode", "harmless", "refused", "tool_response"]
    for index in range(1500):
        row = conversation(rng, kinds[index % len(kinds)])
        yield json.dumps(row["expected"])
        yield from (m["content"] for m in row["messages"])


def build() -> Tokenizer:
    """Train the byte-level BPE; equal input gives equal merges, so the result is reproducible."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = len(CONTROL) + len(MARKUP)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY - added,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((re.sub(r" ?[A-Z0-9]", "\n", t) for t in wording()), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"the wording gives only {tokenizer.get_vocab_size()} tokens")
    return tokenizer


def added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The ``added_tokens_decoder`` of tokenizer_config.json."""
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        str(tokenizer.token_to_id(t)): {"content": t, **flags, "special": t in CONTROL}
        for t in CONTROL + MARKUP
    }


def save(folder: Path) -> Tokenizer:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "added_tokens_decoder": added_tokens(tokenizer),
        **names,
        "chat_template": templates(),
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (("tokenizer_config", config), ("special_tokens_map", names)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    return tokenizer


if __name__ == "__main__":
    print(save(Path(__file__).parent).get_vocab_size(), "tokens")
