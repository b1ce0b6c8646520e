"""Real vocabularies as Hugging Face tokenizer files, rebuilt from the GGUF files in a data folder.

The folder is `../shared/data/vocab` beside a checkout, or `$HERMES_QUANT_DATA/vocab`; where it is
absent, tests that need it skip. The files come from llama.cpp's `models/` (MIT): a Llama-3 and a
Qwen2 byte-level BPE and the Llama-2 SentencePiece, each with golden tokenizations beside it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from convert.authorship import Authorship
from convert.bpe import LLAMA3_SPLIT, QWEN2_SPLIT
from convert.chat_template import read_templates
from convert.families.llama import LLAMA
from convert.gguf import encode_header
from convert.gguf_reader import read_gguf
from convert.metadata import model_fields, tokenizer_fields
from convert.model_spec import read_model_spec
from convert.tokenizer import Vocabulary, read_vocabulary

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("HERMES_QUANT_DATA", _BESIDE))
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def data_file(name: str) -> Path:
    """A file of the data folder; skips the test where it is absent."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} needs the data folder, which is not here (HERMES_QUANT_DATA)")
    return path


def golden(name: str) -> list[tuple[str, list[int]]]:
    """The golden strings of a vocabulary and their ids."""
    texts = data_file(f"vocab/{name}.gguf.inp").read_text(encoding="utf-8")
    lines = data_file(f"vocab/{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    strings = texts.split("\n__ggml_vocab_test__\n")
    ids = [[int(token) for token in line.split()] for line in lines[: len(strings)]]
    return list(zip(strings, ids, strict=True))


def read_folder(folder: Path) -> Vocabulary:
    """The vocabulary of a folder that has a config.json and a tokenizer."""
    return read_vocabulary(folder, read_model_spec(folder / "config.json"))


def write_gguf(folder: Path, out: Path) -> Path:
    """A GGUF of the vocabulary alone, its header written as for a whole model."""
    spec = read_model_spec(folder / "config.json")
    fields = model_fields(LLAMA, spec, folder, authorship=Authorship(), parameters=1, file_type=0)
    fields += tokenizer_fields(read_folder(folder), read_templates(folder))
    path = out / "vocab.gguf"
    path.write_bytes(encode_header(fields, []))
    return path


def write_llama3(folder: Path) -> Path:
    """Llama-3's tokenizer.json: 128,256 tokens, ignore_merges, BOS by post-processor."""
    bos = "<|begin_of_text|>"
    return _write_bpe(folder, "ggml-vocab-llama-bpe", LLAMA3_SPLIT, bos, "<|end_of_text|>")


def write_qwen2(folder: Path) -> Path:
    """Qwen2's tokenizer.json: 151,936 tokens with holes, no BOS."""
    return _write_bpe(folder, "ggml-vocab-qwen2", QWEN2_SPLIT, None, "<|im_end|>")


def _write_bpe(folder: Path, name: str, split: str, bos: str | None, eos: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    fields = read_gguf(data_file(f"vocab/{name}.gguf")).fields
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=bos is not None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for i, token in enumerate(tokens):
        if types[i] != 1 and token != f"[PAD{i}]":
            add = tokenizer.add_special_tokens if types[i] == 3 else tokenizer.add_tokens
            add([AddedToken(token, normalized=False, special=types[i] == 3)])
    if bos:
        template = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
        tokenizer.post_processor = processors.Sequence(
            [processors.ByteLevel(trim_offsets=False), template]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": eos,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    settings |= {"bos_token": bos} if bos else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_llama2(folder: Path, *, added: tuple[str, ...] = ("<|im_end|>", "<|im_start|>")) -> Path:
    """Llama-2's tokenizer.model, with ChatML tokens laid over it as OpenHermes did."""
    from sentencepiece import sentencepiece_model_pb2 as pb2

    folder.mkdir(parents=True, exist_ok=True)
    fields = read_gguf(data_file("vocab/ggml-vocab-llama-spm.gguf")).fields
    model = pb2.ModelProto()
    for token, score, kind in zip(
        fields["tokenizer.ggml.tokens"],
        fields["tokenizer.ggml.scores"],
        fields["tokenizer.ggml.token_type"],
        strict=True,
    ):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    first = len(model.pieces)
    ids = {token: first + i for i, token in enumerate(added)}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>" if added else "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": TEMPLATE,
        "added_tokens_decoder": {
            str(i): {"content": token, "special": token == "<|im_end|>"} for token, i in ids.items()
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
