"""Our vocabulary in llama.cpp: the same tokens, types and ids as the tokenizers library has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.miniature import SPECIALS, TAGS, Shape, config
from tests.peers import LlamaVocabulary
from tests.vocabularies import golden, read_folder, write_gguf, write_llama3

NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"


def test_llama_cpp_loads_the_same_vocabulary(folder: Path) -> None:
    ours = read_folder(folder)
    # llama.h: UNUSED 2, NORMAL 4, CONTROL 8, USER_DEFINED 16; other bits are derived
    bits = {"UNUSED": 2, "NORMAL": 4, "CONTROL": 8, "USER_DEFINED": 16}
    with LlamaVocabulary(write_gguf(folder, folder)) as theirs:
        assert [theirs.text(i) for i in range(len(theirs))] == list(ours.pieces.tokens)
        for i, kind in enumerate(ours.pieces.types):
            assert theirs.attribute(i) & 30 == bits[kind.name], ours.pieces.tokens[i]
        api, vocab = theirs.api, theirs.vocab
        assert api.llama_vocab_bos(vocab) == ours.special_ids["bos"]
        assert api.llama_vocab_eos(vocab) == ours.special_ids["eos"]
        assert api.llama_vocab_get_add_bos(vocab)
        assert not api.llama_vocab_get_add_eos(vocab)
        assert api.llama_vocab_is_eog(vocab, ours.special_ids["eos"])
        assert theirs.tokenize("th", add_special=True) == [257, 256]


pieces = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from([*SPECIALS, *TAGS, " the", "'ll", "'VE", "\r\n\n", "12345", "\t ", "  "]),
    st.sampled_from(
        ['{"name": "', '", "arguments": {}}', " I cannot help", "\u00e9t\u00e9", "!?..\n"]
    ),
)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tokenizer, LlamaVocabulary]]:
    """The vocabulary of hermes-nano in the tokenizers library and in llama.cpp."""
    path = write_gguf(NANO, tmp_path_factory.mktemp("vocabulary"))
    with LlamaVocabulary(path) as theirs:
        yield Tokenizer.from_file(str(NANO / "tokenizer.json")), theirs


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=8).map("".join))
def test_llama_cpp_gives_the_ids_of_the_tokenizers_library(
    both: tuple[Tokenizer, LlamaVocabulary], text: str
) -> None:
    ours, theirs = both
    assert theirs.tokenize(text, add_special=True) == ours.encode(text).ids


def test_the_golden_strings_of_llama_3(tmp_path: Path) -> None:
    write_llama3(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    shape = Shape(vocab=tokenizer.get_vocab_size())
    (tmp_path / "config.json").write_text(json.dumps(config(shape, tied=False)))
    strings = golden("ggml-vocab-llama-bpe")
    assert len(strings) >= 47
    with LlamaVocabulary(write_gguf(tmp_path, tmp_path)) as theirs:
        for text, ids in strings:
            assert theirs.tokenize(text, special=False) == ids, repr(text)
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)
