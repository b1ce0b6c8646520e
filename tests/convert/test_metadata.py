"""What a GGUF header says of the model: llama.cpp's keys, its order, its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf.utility import size_label as gguf_size_label
from hypothesis import given
from hypothesis import strategies as st

from convert.errors import CheckpointError
from convert.gguf_reader import read_gguf
from convert.job import convert
from convert.metadata import size_label
from quantize.job import quantize
from tests.miniature import TEMPLATE, Shape, change_json, write_checkpoint
from tests.peers import LlamaVocabulary

CARD = """---
license: llama3
language: [en, de]
tags:
- chatml
model_name: Tiny Hermes
---
"""
HEAD = [
    "general.architecture",
    "general.type",
    "general.sampling.top_k",
    "general.sampling.top_p",
    "general.sampling.temp",
    "general.name",
    "general.size_label",
    "general.license",
    "general.tags",
    "general.languages",
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.rope.freq_base",
    "llama.attention.layer_norm_rms_epsilon",
    "llama.attention.key_length",
    "llama.attention.value_length",
]
TAIL = [
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_sep_token",
    "tokenizer.chat_template.tool_use",
    "tokenizer.chat_templates",
    "tokenizer.chat_template",
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = write_checkpoint(tmp_path / "s", shape=Shape(layers=1))
    change_json(source / "config.json", head_dim=32)
    change_json(source / "generation_config.json", top_k=50, temperature=0.7, do_sample=True)
    (source / "README.md").write_text(CARD)
    return source


def test_keys_in_the_order_of_llama_cpp_s_converter(tmp_path: Path, source: Path) -> None:
    quantize(str(source), tmp_path, ["BF16", "Q4_K_M"], name="m")
    sizes = ["llama.vocab_size", "llama.rope.dimension_count"]
    moved = ["general.quantization_version", "general.file_type"]
    assert list(read_gguf(tmp_path / "m-BF16.gguf").fields) == [
        *HEAD,
        moved[1],
        *sizes,
        moved[0],
        *TAIL,
    ]
    assert list(read_gguf(tmp_path / "m-Q4_K_M.gguf").fields) == [*HEAD, *sizes, *TAIL, *moved]


def test_values(tmp_path: Path, source: Path) -> None:
    convert(str(source), tmp_path, ["BF16"])
    fields = read_gguf(tmp_path / "Tiny-Hermes-BF16.gguf").fields
    expected = {
        "general.name": "Tiny Hermes",
        "general.license": "llama3",
        "general.tags": ["chatml"],
        "general.languages": ["en", "de"],
        "general.sampling.top_k": 50,
        "general.file_type": 32,
        "general.quantization_version": 2,
        "llama.block_count": 1,
        "llama.context_length": 2048,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 4,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 32,
        "llama.vocab_size": 320,
        "tokenizer.chat_template": TEMPLATE,
        "tokenizer.chat_templates": ["tool_use"],
    }
    assert {key: fields[key] for key in expected} == expected
    assert fields["general.sampling.temp"] == pytest.approx(0.7)
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_llama_cpp_finds_both_templates(tmp_path: Path, source: Path) -> None:
    convert(str(source), tmp_path, ["BF16"], name="m")
    with LlamaVocabulary(tmp_path / "m-BF16.gguf") as model:
        template = model.api.llama_model_chat_template
        assert template(model.model, None).decode() == TEMPLATE
        assert template(model.model, b"tool_use").decode() == TEMPLATE.replace("{{ m.c", "T{{ m.c")


def test_a_template_s_name_is_made_a_key(tmp_path: Path, source: Path) -> None:
    named = [{"name": n, "template": n} for n in ("default", "rag v2.1", "tool_use")]
    change_json(source / "tokenizer_config.json", chat_template=named)
    convert(str(source), tmp_path, ["BF16"], name="m")
    fields = read_gguf(tmp_path / "m-BF16.gguf").fields
    assert fields["tokenizer.chat_template.rag_v2_1"] == "rag v2.1"
    assert fields["tokenizer.chat_templates"] == ["rag_v2_1", "tool_use"]


@given(st.integers(1, 10**13))
def test_size_labels_are_gguf_s_own(parameters: int) -> None:
    assert size_label(parameters) == gguf_size_label(parameters, 0, 0, 0)


@pytest.mark.parametrize(
    ("parameters", "label"),
    [(8030261248, "8.0B"), (70553706496, "71B"), (405853388800, "406B"), (999, "1.0K")],
)
def test_size_labels_of_real_models(parameters: int, label: str) -> None:
    assert size_label(parameters) == label


@pytest.mark.parametrize("value", [10**400, 1e300, float("inf"), float("nan")])
def test_sampling_settings_that_no_field_holds(tmp_path: Path, source: Path, value: float) -> None:
    path = source / "generation_config.json"
    path.write_text(json.dumps({"temperature": value}))
    with pytest.raises(CheckpointError, match=r"generation_config\.json: temperature is"):
        convert(str(source), tmp_path / "out", ["BF16"])
