"""The vocabulary of a checkpoint: what a GGUF says of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.bpe import PRE_TOKENIZERS
from convert.errors import CheckpointError, UnsupportedError
from convert.tokenizer import TokenType
from tests.miniature import SPECIALS, TAGS, Shape, change_json
from tests.vocabularies import read_folder

SIZE = Shape().vocab
SPLIT = next(pattern for pattern, _ in PRE_TOKENIZERS)


def edit(folder: Path, key: str, value: object) -> None:
    change_json(folder / "tokenizer.json", **{key: value})


def model(folder: Path, **values: object) -> None:
    path = folder / "tokenizer.json"
    change_json(path, model={**json.loads(path.read_text())["model"], **values})


def test_tokens_types_and_the_holes_of_a_padded_vocabulary(folder: Path) -> None:
    found = read_folder(folder)
    pieces = found.pieces
    assert (pieces.pre, len(pieces.tokens), pieces.merges) == ("llama-bpe", SIZE, ("t h",))
    assert found.pieces.tokens[256] == "th"
    assert found.pieces.tokens[257:267] == (*SPECIALS, *TAGS)
    assert found.pieces.tokens[267] == "[PAD267]"
    assert set(found.pieces.types[:257]) == {TokenType.NORMAL}
    assert set(found.pieces.types[257:261]) == {TokenType.CONTROL}
    assert set(pieces.types[261:267]) == {TokenType.USER_DEFINED}, "<tool_call> must not vanish"
    assert set(found.pieces.types[267:]) == {TokenType.UNUSED}


def test_a_hole_in_the_middle(folder: Path) -> None:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    edit(folder, "added_tokens", [t for t in added if t["id"] != 262])
    found = read_folder(folder)
    assert found.pieces.tokens[261:264] == ("<tools>", "[PAD262]", "<tool_call>")
    assert found.pieces.types[262] == TokenType.UNUSED


@pytest.mark.parametrize(
    ("text", "special", "kind"),
    [
        ("<tool_call>", True, TokenType.CONTROL),
        ("<|python_tag|>", False, TokenType.CONTROL),
        ("<pad>", False, TokenType.CONTROL),
        ("<|half", False, TokenType.USER_DEFINED),
        ("\u00fcber", False, TokenType.USER_DEFINED),
    ],
)
def test_the_type_of_an_added_token(
    folder: Path, text: str, special: bool, kind: TokenType
) -> None:
    edit(folder, "added_tokens", [{"id": 300, "content": text, "special": special}])
    found = read_folder(folder)
    assert (found.pieces.tokens[300], found.pieces.types[300]) == (text, kind)


def test_special_ids_by_name_first_and_by_number_where_there_is_no_name(folder: Path) -> None:
    config_path, tokenizer_path = folder / "config.json", folder / "tokenizer_config.json"
    change_json(config_path, eos_token_id=258, pad_token_id=265)
    assert read_folder(folder).special_ids == {"bos": 257, "eos": 260, "pad": 265}
    change_json(tokenizer_path, eos_token={"content": "<|im_start|>"}, bos_token=None)
    assert read_folder(folder).special_ids == {"bos": 257, "eos": 259, "pad": 265}
    change_json(tokenizer_path, eos_token="not a token")
    change_json(config_path, pad_token_id=-1)
    assert read_folder(folder).special_ids == {"bos": 257, "eos": 258}
    change_json(config_path, eos_token_id=[258, 260])
    assert read_folder(folder).special_ids == {"bos": 257}
    change_json(config_path, pad_token_id=SIZE)
    with pytest.raises(CheckpointError, match=f"pad_token_id is {SIZE}, but vocab_size is {SIZE}"):
        read_folder(folder)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}


def template(*single: str) -> dict[str, Any]:
    def entry(name: str) -> dict[str, Any]:
        kind = "Sequence" if name in "AB" else "SpecialToken"
        return {kind: {"id": name, "type_id": 0}}

    return {"type": "TemplateProcessing", "single": [entry(n) for n in single], "pair": []}


@pytest.mark.parametrize(
    ("processor", "config_says", "expected"),
    [
        (template(SPECIALS[0], "A"), None, {"bos": True}),
        (template(SPECIALS[1], "A"), None, {"bos": False}),
        (template(SPECIALS[0], "A", "<|im_end|>"), None, {"bos": True, "eos": True}),
        (BYTE_LEVEL, None, {"bos": False, "eos": False}),
        (
            {"type": "Sequence", "processors": [BYTE_LEVEL, template(SPECIALS[0], "A")]},
            None,
            {"bos": True, "eos": False},
        ),
        (None, None, {}),
        (None, True, {"bos": True}),
        (template(SPECIALS[0], "A"), False, {"bos": True}),
    ],
)
def test_what_is_added_to_a_prompt(
    folder: Path, processor: object, config_says: bool | None, expected: dict[str, bool]
) -> None:
    edit(folder, "post_processor", processor)
    change_json(folder / "tokenizer_config.json", add_bos_token=config_says)
    assert read_folder(folder).add_special == expected


def test_merges_in_both_forms(folder: Path) -> None:
    for merges in (["t h"], [["t", "h"]]):
        model(folder, merges=merges)
        assert read_folder(folder).pieces.merges == ("t h",)
    model(folder, merges=[["a b", "c"]])
    assert read_folder(folder).pieces.merges == ("a\u0120b c",)


def test_an_unknown_splitting_is_shown(folder: Path) -> None:
    edit(folder, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": r"\p{N}{1,2}|x"}})
    with pytest.raises(UnsupportedError, match=r"tokenizer.json.*\\\\p\{N\}\{1,2\}\|x"):
        read_folder(folder)


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "ByteLevel", "add_prefix_space": False},
        {"type": "Whitespace"},
        {"type": "Split", "pattern": {"String": SPLIT}},
        {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits"}, {"type": "Split", "pattern": {"Regex": SPLIT}}],
        },
    ],
)
def test_splitting_that_only_resembles_llama_3(folder: Path, pre_tokenizer: object) -> None:
    edit(folder, "pre_tokenizer", pre_tokenizer)
    with pytest.raises(UnsupportedError, match="splits text in a way"):
        read_folder(folder)


def test_without_ignore_merges_it_is_another_pre_tokenizer(folder: Path) -> None:
    model(folder, ignore_merges=False)
    assert read_folder(folder).pieces.pre == "smaug-bpe"


@pytest.mark.parametrize(
    ("values", "error", "found"),
    [
        ({"type": "Unigram"}, UnsupportedError, "a Unigram tokenizer; BPE and Sent"),
        ({"vocab": [["a", 0]]}, CheckpointError, "vocab is malformed"),
        ({"vocab": {"a": "0"}}, CheckpointError, "vocab is malformed"),
        ({"vocab": {"a": 0, "b": 0}}, CheckpointError, "token id 0 is both 'a' and 'b'"),
        ({"vocab": {"a": SIZE}}, CheckpointError, f"has token id {SIZE}, .* vocab_size {SIZE}"),
        ({"vocab": {"[PAD300]": 1}}, CheckpointError, r"'\[PAD300\]' has ids 1 and 300"),
        ({"vocab": {"<tools>": 7}}, CheckpointError, "'<tools>' has ids 7 and 261"),
        ({"merges": []}, CheckpointError, "no merges"),
        ({"merges": ["a b", ["a"]]}, CheckpointError, "merge 'a b' is not a pair"),
    ],
)
def test_a_vocabulary_that_cannot_be_told(
    folder: Path, values: dict[str, object], error: type[Exception], found: str
) -> None:
    model(folder, **values)
    with pytest.raises(error, match=f"tokenizer.json: .*{found}"):
        read_folder(folder)


def test_no_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        read_folder(folder)
