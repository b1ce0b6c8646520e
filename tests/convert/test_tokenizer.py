"""The vocabulary in a GGUF: what it says, what it refuses, and what llama.cpp makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from convert.authorship import Authorship
from convert.bpe import PRE_TOKENIZERS
from convert.chat_template import read_templates
from convert.errors import CheckpointError, UnsupportedError
from convert.families.llama import LLAMA
from convert.gguf import encode_header, read_gguf
from convert.metadata import model_fields, tokenizer_fields
from convert.model_spec import read_model_spec
from convert.tokenizer import TokenType, Vocabulary, read_vocabulary
from tests.miniature import SPECIALS, TAGS, Shape, change_json, config, write_tokenizer
from tests.peers import LlamaVocabulary

DATA = Path(__file__).parents[3] / "shared" / "data" / "vocab"
NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"
SIZE = Shape().vocab
SPLIT = next(pattern for pattern, _ in PRE_TOKENIZERS)


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


def edit(folder: Path, key: str, value: object) -> None:
    change_json(folder / "tokenizer.json", **{key: value})


def model(folder: Path, **values: object) -> None:
    path = folder / "tokenizer.json"
    change_json(path, model={**json.loads(path.read_text())["model"], **values})


def test_tokens_types_and_the_holes_of_a_padded_vocabulary(folder: Path) -> None:
    found = vocabulary(folder)
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
    found = vocabulary(folder)
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
    found = vocabulary(folder)
    assert (found.pieces.tokens[300], found.pieces.types[300]) == (text, kind)


def test_special_ids_by_name_first_and_by_number_where_there_is_no_name(folder: Path) -> None:
    config_path, tokenizer_path = folder / "config.json", folder / "tokenizer_config.json"
    change_json(config_path, eos_token_id=258, pad_token_id=265)
    assert vocabulary(folder).special_ids == {"bos": 257, "eos": 260, "pad": 265}
    change_json(tokenizer_path, eos_token={"content": "<|im_start|>"}, bos_token=None)
    assert vocabulary(folder).special_ids == {"bos": 257, "eos": 259, "pad": 265}
    change_json(tokenizer_path, eos_token="not a token")
    change_json(config_path, pad_token_id=-1)
    assert vocabulary(folder).special_ids == {"bos": 257, "eos": 258}
    change_json(config_path, eos_token_id=[258, 260])
    assert vocabulary(folder).special_ids == {"bos": 257}
    change_json(config_path, pad_token_id=SIZE)
    with pytest.raises(CheckpointError, match=f"pad_token_id is {SIZE}, but vocab_size is {SIZE}"):
        vocabulary(folder)


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
    assert vocabulary(folder).add_special == expected


def test_merges_in_both_forms(folder: Path) -> None:
    for merges in (["t h"], [["t", "h"]]):
        model(folder, merges=merges)
        assert vocabulary(folder).pieces.merges == ("t h",)
    model(folder, merges=[["a b", "c"]])
    assert vocabulary(folder).pieces.merges == ("a\u0120b c",)


def test_an_unknown_splitting_is_shown(folder: Path) -> None:
    edit(folder, "pre_tokenizer", {"type": "Split", "pattern": {"Regex": r"\p{N}{1,2}|x"}})
    with pytest.raises(UnsupportedError, match=r"tokenizer.json.*\\\\p\{N\}\{1,2\}\|x"):
        vocabulary(folder)


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
        vocabulary(folder)


def test_without_ignore_merges_it_is_another_pre_tokenizer(folder: Path) -> None:
    model(folder, ignore_merges=False)
    assert vocabulary(folder).pieces.pre == "smaug-bpe"


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
        vocabulary(folder)


def test_no_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        vocabulary(folder)


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
