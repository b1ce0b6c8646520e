"""config.json and the model card: what is missing, of the wrong kind or beside the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.job import quantize
from tests.convert.refusal import TARGETS, refuse
from tests.miniature import Shape, change_json, write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", shape=Shape(layers=1))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (None, "config.json: not found"),
        (b"{", "config.json: not valid JSON"),
        (b"\xff\xfe", "config.json: not valid JSON"),
        (b"[" * 100_000, "config.json: not valid JSON"),
        (b"[1]", "holds a JSON list, expected an object"),
        (b"{}", "architectures is None; expected a list"),
    ],
)
def test_a_config_that_is_none(source: Path, config: bytes | None, found: str) -> None:
    (source / "config.json").unlink()
    if config is not None:
        (source / "config.json").write_bytes(config)
    refuse(source, found)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ("'MambaForCausalLM'", "known: LlamaForCausal")),
        ({"architectures": "LlamaForCausalLM"}, ("architectures is 'LlamaForCausalLM'", "a list")),
        ({"hidden_size": None}, ("hidden_size is None", "positive integer")),
        ({"hidden_size": 256.0}, ("hidden_size is 256.0", "positive integer")),
        ({"vocab_size": True}, ("vocab_size is True", "positive integer")),
        ({"intermediate_size": -1}, ("intermediate_size is -1", "positive integer")),
        ({"hidden_size": 10**30}, ("hidden_size is 1000", "positive integer")),
        ({"hidden_size": 257}, ("hidden_size 257 does not divide by num_attention_heads 8",)),
        ({"num_key_value_heads": 3}, ("num_attention_heads 8 does not divide by", "3")),
        ({"head_dim": 31}, ("head_dim 31 is odd",)),
        ({"rms_norm_eps": "tiny"}, ("rms_norm_eps is 'tiny'", "positive number")),
        ({"rope_theta": 0}, ("rope_theta is 0", "positive number")),
        ({"rope_scaling": {"rope_type": "yarn"}}, ("rope_type 'yarn'", "default, llama3")),
        ({"rope_scaling": "llama3"}, ("rope_scaling is 'llama3'", "object")),
        (
            {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 10**400}},
            ("original_max_position_embeddings is 1000", "integer"),
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4.0}},
            ("high_freq_factor 4.0 must exceed low_freq_factor 4.0",),
        ),
        ({"bos_token_id": "1"}, ("bos_token_id is '1'", "token ids")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("already quantized (gptq)", "16- or")),
        ({"num_hidden_layers": 2}, ("model.layers.1.", "missing", "2 layers")),
        ({"num_hidden_layers": 2**31 - 1}, ("missing", "2147483647 layers")),
        ({"intermediate_size": 256}, ("[256, 512]", "for [256, 256]", "hidden x intermediate")),
        ({"tie_word_embeddings": True, "vocab_size": 321}, ("[320, 256]", "asks for [321, 256]")),
    ],
)
def test_a_config_that_does_not_fit(
    source: Path, values: dict[str, object], found: tuple[str, ...]
) -> None:
    change_json(source / "config.json", **values)
    refuse(source, *found)


@pytest.mark.parametrize("text", [b"[" * 20000, b"\xff", b"- a", b"? [a]\n: b", b"a: b: c"])
def test_a_card_whose_front_matter_is_none(source: Path, text: bytes) -> None:
    (source / "README.md").write_bytes(b"---\n" + text + b"\n---\n")
    refuse(source, "README.md: the front matter cannot be read")


def test_a_card_that_says_nothing_of_use(source: Path) -> None:
    text = "---\nmodel-index: 5\ntags: {a: b}\nlicense: [x]\nmodel_name: 2024-01-01\n---\n"
    (source / "README.md").write_text(text)
    assert quantize(str(source), source / "out", TARGETS, dry_run=True).name == "source"
