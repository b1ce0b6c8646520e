"""Our vocabulary in llama.cpp: the same tokens, types and ids as the tokenizers library has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from convert.authorship import Authorship
from convert.chat_template import read_templates
from convert.families.llama import LLAMA
from convert.gguf import encode_header, read_gguf
from convert.metadata import model_fields, tokenizer_fields
from convert.model_spec import read_model_spec
from convert.tokenizer import TokenType, Vocabulary, read_vocabulary
from tests.miniature import SPECIALS, TAGS, Shape, change_json, config, write_tokenizer
from tests.peers import LlamaVocabulary

DATA = Path(__file__).parents[3] / "shared" / "data" / "vocab"
NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and a config, no weights."""
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config(Shape(), tied=False)))
    return tmp_path


def vocabulary(folder: Path) -> Vocabulary:
    return read_vocabulary(folder, read_model_spec(folder / "config.json"))


def vocabulary_file(folder: Path, out: Path) -> Path:
    """A GGUF of the vocabulary alone, its header written as for a whole model."""
    spec = read_model_spec(folder / "config.json")
    fields = model_fields(LLAMA, spec, folder, authorship=Authorship(), parameters=1, file_type=0)
    fields += tokenizer_fields(vocabulary(folder), read_templates(folder))
    path = out / "vocab.gguf"
    path.write_bytes(encode_header(fields, []))
    return path


def test_llama_cpp_loads_the_same_vocabulary(folder: Path) -> None:
    ours = vocabulary(folder)
    # llama.h: UNUSED 2, NORMAL 4, CONTROL 8, USER_DEFINED 16; other bits are derived
    bits = {"UNUSED": 2, "NORMAL": 4, "CONTROL": 8, "USER_DEFINED": 16}
    with LlamaVocabulary(vocabulary_file(folder, folder)) as theirs:
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
    path = vocabulary_file(NANO, tmp_path_factory.mktemp("vocabulary"))
    with LlamaVocabulary(path) as theirs:
        yield Tokenizer.from_file(str(NANO / "tokenizer.json")), theirs


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=8).map("".join))
def test_llama_cpp_gives_the_ids_of_the_tokenizers_library(
    both: tuple[Tokenizer, LlamaVocabulary], text: str
) -> None:
    ours, theirs = both
    assert theirs.tokenize(text, add_special=True) == ours.encode(text).ids


def rebuild_llama_3(folder: Path) -> None:
    """tokenizer.json of Llama 3 from the vocabulary that llama.cpp ships for its own tests."""
    fields = read_gguf(DATA / "ggml-vocab-llama-bpe.gguf").fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    added = [
        {
            "id": i,
            "content": text,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == TokenType.CONTROL
    ]
    write_tokenizer(folder)
    change_json(
        folder / "tokenizer.json",
        added_tokens=added,
        model={
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens) if types[i] == TokenType.NORMAL},
            "merges": fields["tokenizer.ggml.merges"],
            "ignore_merges": True,
        },
    )
    shape = Shape(vocab=len(tokens))
    (folder / "config.json").write_text(json.dumps(config(shape, tied=False)))


@pytest.mark.skipif(not DATA.is_dir(), reason="no Llama-3 vocabulary in ../shared/data/vocab")
def test_the_golden_strings_of_llama_3(tmp_path: Path) -> None:
    rebuild_llama_3(tmp_path)
    name = DATA / "ggml-vocab-llama-bpe.gguf"
    texts = Path(f"{name}.inp").read_text().split("\n__ggml_vocab_test__\n")
    golden = Path(f"{name}.out").read_text().split("\n")[: len(texts)]
    assert len(texts) >= 47
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with LlamaVocabulary(vocabulary_file(tmp_path, tmp_path)) as theirs:
        for text, line in zip(texts, golden, strict=True):
            ids = [int(token) for token in line.split()]
            assert theirs.tokenize(text, special=False) == ids, repr(text)
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)
