"""Prompt ids against transformers' own, with a real tokenizer and real templates."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from convert.conversation import Conversation
from convert.errors import CheckpointError, ConversationError, UnsupportedError
from convert.rendering import Tokenizer, render

ROOT = Path(__file__).parents[2]
NANO = ROOT / "examples" / "hermes-nano"
TEMPLATES = ROOT.parent / "shared" / "data" / "templates"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
WORDS = (
    "plain", "<tool_call>", "</tool_call>\n", '"quote"', "{brace}", "<|im_end|>", "naïve", "東京",
    "👩‍💻", "1234567", "-0.5", "  two  spaces", "\ttab\r\n", "it's", "<&>", "\\", "\u2028",
    "e\u0301",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in TOKENIZER_FILES:
        shutil.copy(NANO / name, tmp_path / name)
    return tmp_path


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def text(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6)))


def value(rng: random.Random) -> Any:
    kinds = [text(rng), rng.randint(-9, 10**20), rng.random(), 2.0, True, None, [1, text(rng)], {}]
    return rng.choice(kinds)


def tool(rng: random.Random) -> dict[str, Any]:
    properties = {
        f"p{i}": {"type": rng.choice(["string", "integer", "boolean"]), "description": text(rng)}
        for i in range(rng.randint(0, 3))
    }
    function = {
        "name": f"tool_{rng.randint(0, 9)}",
        "description": text(rng),
        "parameters": {"type": "object", "properties": properties},
    }
    return {"type": "function", "function": function}


def conversation(seed: int) -> Conversation:
    """System, user, calls with and without content, tool results, and an answer or none."""
    rng = random.Random(seed)
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        messages.append({"role": "system", "content": text(rng)})
    messages.append({"role": "user", "content": text(rng)})
    tools = tuple(tool(rng) for _ in range(rng.randint(0, 3)))
    if tools:
        calls = [
            {
                "type": "function",
                "function": {"name": "f", "arguments": {text(rng): value(rng)}},
            }
            for _ in range(rng.randint(1, 2))
        ]
        content = rng.choice([None, "", text(rng)])
        messages.append({"role": "assistant", "content": content, "tool_calls": calls})
        messages += [{"role": "tool", "name": "f", "content": text(rng)} for _ in calls]
    if rng.random() < 0.5:
        messages.append({"role": "assistant", "content": text(rng)})
    return Conversation(f"random-{seed}", tuple(messages), tools)


def check_against_transformers(folder: Path, seeds: range) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.open(folder)
    for seed in seeds:
        made = conversation(seed)
        for prompt in (True, False):
            options = {"tools": list(made.tools) or None, "add_generation_prompt": prompt}
            try:
                expected = theirs.apply_chat_template(
                    [dict(m) for m in made.messages], return_dict=False, **options
                )
            except Exception as error:  # a template may refuse: then ours must too
                with pytest.raises(ConversationError, match=type(error).__name__):
                    render(ours, made, add_generation_prompt=prompt)
                continue
            assert render(ours, made, add_generation_prompt=prompt) == expected, made
    ours.close()


def test_same_ids_as_transformers(folder: Path) -> None:
    check_against_transformers(folder, range(80))


def test_same_ids_with_templates_in_files(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {t["name"]: t["template"] for t in config["chat_template"]}
    (folder / "chat_template.jinja").write_text("files win\r\n" + named["default"])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(named["tool_use"])
    check_against_transformers(folder, range(150, 180))


@pytest.mark.parametrize(
    "name", ["NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "Qwen-Qwen3-0.6B.jinja"]
)
def test_same_ids_with_published_templates(folder: Path, name: str) -> None:
    if not (TEMPLATES / name).is_file():
        pytest.skip(f"{TEMPLATES / name} is not there")
    named = [
        {"name": "tool_use", "template": (TEMPLATES / name).read_text()},
        {"name": "default", "template": "{{ messages[0].content }}"},
    ]
    edit_config(folder, chat_template=named)
    check_against_transformers(folder, range(200, 230))


def test_encode_and_decode_keep_tags(folder: Path) -> None:
    tokenizer = Tokenizer.open(folder)
    written = '<tool_call>\n{"name": "f"}\n</tool_call><|im_end|>'
    ids = tokenizer.encode(written)
    assert tokenizer.decode(ids) == written
    assert ids[0] == tokenizer.token_id("<tool_call>")
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.bos_id not in ids


def test_one_bos_none_and_two(folder: Path) -> None:
    made = Conversation("c", ({"role": "user", "content": "hi"},))
    for template, count in (("{{ bos_token }}x", 1), ("x", 0)):
        edit_config(folder, chat_template=template)
        tokenizer = Tokenizer.open(folder)
        assert render(tokenizer, made).count(tokenizer.bos_id or 0) == count
    edit_config(folder, chat_template="{{ bos_token }}{{ bos_token }}x")
    with pytest.raises(ConversationError, match="two BOS"):
        render(Tokenizer.open(folder), made)


def test_padding_and_truncation_saved_in_the_file_do_not_leak(folder: Path) -> None:
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    long = "many words " * 50
    whole = Tokenizer.open(folder).encode(long)
    stored["truncation"] = {
        "max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"
    }  # fmt: skip
    path.write_text(json.dumps(stored))
    assert Tokenizer.open(folder).encode(long) == whole


PREFIX = json.dumps(
    {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2},
            "merges": [["a", "b"]],
            "continuing_subword_prefix": "b",
        }
    }
)
"""The library cuts the prefix from `b` and ends the process."""


def test_tokenizers_that_cannot_be_used_are_named(folder: Path) -> None:
    with pytest.raises(ConversationError, match="surrogate"):
        Tokenizer.open(folder).encode("\ud800")
    edit_config(folder, added_tokens_decoder={"5": {"content": "<new>"}})
    with pytest.raises(UnsupportedError, match="'<new>' is 5 here and None"):
        Tokenizer.open(folder)
    edit_config(folder, added_tokens_decoder={"5": {"content": "\ud800"}})
    with pytest.raises(UnsupportedError, match="is 5 here and None"):
        Tokenizer.open(folder)
    edit_config(folder, added_tokens_decoder=[5])
    with pytest.raises(CheckpointError, match="added_tokens_decoder is malformed"):
        Tokenizer.open(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.open(folder)
    (folder / "tokenizer.json").write_text(PREFIX)
    with pytest.raises(UnsupportedError, match=r"continuing_subword_prefix is not empty"):
        Tokenizer.open(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not found"):
        Tokenizer.open(folder)


def test_a_template_reads_the_conversation_s_variables_as_transformers_does(folder: Path) -> None:
    from transformers import AutoTokenizer

    edit_config(
        folder,
        chat_template="{% if thinking is defined and thinking %}deep{% endif %}{{ pad_token }}"
        "{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}",
        pad_token="<|im_end|>",
    )
    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.open(folder)
    messages = ({"role": "user", "content": "hi"},)
    for variables in ({}, {"thinking": True}, {"thinking": False}, {"pad_token": "p"}):
        conversation = Conversation("c", messages, template_kwargs=variables)
        expected = theirs.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False, **variables
        )
        assert tokenizer.render_text(conversation) == expected
    tokenizer.close()
