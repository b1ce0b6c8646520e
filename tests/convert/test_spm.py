"""SentencePiece vocabularies: both forms give llama.cpp the ids of the golden strings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convert.errors import CheckpointError
from convert.gguf_reader import read_gguf
from convert.tokenizer import TokenType, Vocabulary
from tests.miniature import Shape, change_json, config
from tests.peers import LlamaVocabulary
from tests.vocabularies import data_file, golden, read_folder, write_gguf, write_llama2

SIZE = 32002
NOT_UTF8 = b"\n\x09\n\x05<unk>\x18\x02\n\x04\n\x02\xff\xfe"
"""A model of two pieces: `<unk>`, of type 2, and one that is no text."""


def vocabulary(folder: Path, size: int = SIZE) -> Vocabulary:
    content = config(Shape(vocab=size), tied=False) | {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(content))
    return read_folder(folder)


def write_json_form(folder: Path) -> None:
    """tokenizer.json as transformers derives it from the same vocabulary: merges by score."""
    fields = read_gguf(data_file("vocab/ggml-vocab-llama-spm.gguf")).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    scores: list[float] = fields["tokenizer.ggml.scores"]
    ids = {token: i for i, token in enumerate(tokens)}
    ranked: list[tuple[float, int, list[str]]] = []
    for token, i in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids and i > 258:
                ranked.append((-scores[i], i, [left, right]))
    ranked.sort(key=lambda entry: entry[:2])
    model: dict[str, Any] = {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": ids,
        "merges": [pair for _, _, pair in ranked],
    }
    special = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", True)]
    special += [(32000, "<|im_end|>", True), (32001, "<tool_call>", False)]
    added = [{"id": i, "content": text, "special": s} for i, text, s in special]
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    settings = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("form", ["tokenizer.model", "tokenizer.json"])
def test_llama_cpp_gives_the_golden_ids(tmp_path: Path, form: str) -> None:
    write_llama2(tmp_path) if form == "tokenizer.model" else write_json_form(tmp_path)
    vocabulary(tmp_path)
    with LlamaVocabulary(write_gguf(tmp_path, tmp_path)) as theirs:
        strings = golden("ggml-vocab-llama-spm")
        assert len(strings) >= 47
        for text, ids in strings:
            assert theirs.tokenize(text) == ids, text


def test_added_tokens_are_laid_over_the_model(tmp_path: Path) -> None:
    write_llama2(tmp_path)
    found = vocabulary(tmp_path, SIZE + 2)
    pieces = found.pieces
    assert pieces.tokens[32000:] == ("<|im_end|>", "<|im_start|>", "[PAD32002]", "[PAD32003]")
    assert pieces.types[32000] is TokenType.CONTROL
    assert pieces.types[32002] is TokenType.UNUSED
    assert pieces.types[3] is TokenType.BYTE
    assert (pieces.scores[32000], pieces.scores[32002]) == (-1000.0, -10000.0)
    assert found.special_ids["bos"] == 1


def test_a_model_larger_than_the_embedding_is_refused_with_the_numbers(tmp_path: Path) -> None:
    write_llama2(tmp_path)
    with pytest.raises(CheckpointError, match=r"token id 32001, but .* vocab_size 32000"):
        vocabulary(tmp_path, 32000)


@pytest.mark.parametrize("content", [b"not a protobuf at all" * 9, NOT_UTF8])
def test_a_file_that_is_no_sentencepiece_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: not a SentencePiece model"):
        vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("added", "decoder", "found"),
    [
        ({"<x>": "7"}, {}, r"added_tokens\.json: added tokens is malformed"),
        ({"<x>": 2.7}, {}, r"added_tokens\.json: added tokens is malformed"),
        ({"<x>": -7}, {}, r"added_tokens\.json: added tokens is malformed"),
        ({"<x>": 7, "<y>": 7}, {}, "token id 7 is both '<x>' and '<y>'"),
        ({}, [7], "added_tokens_decoder is malformed"),
        ({}, {"seven": {"content": "<x>"}}, "added token 'seven'"),
        ({}, {"-7": {"content": "<x>"}}, "added token '-7'"),
        ({}, {"7": {}}, "added token '7': {} has no id or no content"),
        ({}, {"7": "<x>"}, "added token '7': '<x>' has no id or no content"),
    ],
)
def test_added_tokens_that_cannot_be_told(
    tmp_path: Path, added: object, decoder: object, found: str
) -> None:
    write_llama2(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    change_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(CheckpointError, match=found):
        vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"vocab": {"a": 0, "b": 0}}, "token id 0 is both 'a' and 'b'"),
        ({"merges": [["a", 1]]}, r"merge \['a', 1\] is not a pair of texts"),
        ({"merges": [5]}, "merge 5 is not a pair of texts"),
    ],
)
def test_a_json_form_that_cannot_be_told(
    tmp_path: Path, values: dict[str, object], found: str
) -> None:
    model = {"byte_fallback": True, "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {**model, **values}}))
    with pytest.raises(CheckpointError, match=found):
        vocabulary(tmp_path)


def test_a_special_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    write_llama2(tmp_path)
    added = [{"id": 2**40, "content": "<s>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    with pytest.raises(CheckpointError, match="the id of '<s>' is 1099511627776, but vocab_size"):
        vocabulary(tmp_path)
