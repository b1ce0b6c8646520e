"""One's own mixture: types by role and layer, and files that llama.cpp reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.errors import InputError
from convert.gguf_reader import read_gguf
from quantize.choice import Overrides, parse_pattern
from quantize.job import quantize
from quantize.own_mixture import read_own_mixture
from tests.families import write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer

AGENT = """
name: AGENT
default: q4_k
roles: {attn_v: Q6_K, ffn_down: Q5_K, output: Q6_K}
layers:
  - {first: 1, last: 1, type: Q8_0}
  - {first: 2, type: Q2_K}
"""


def write(tmp_path: Path, text: str = AGENT) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(text)
    return path


def types(path: Path) -> dict[str, str]:
    tensors = read_gguf(path).tensors.values()
    return {t.name.removesuffix(".weight"): t.ggml_type for t in tensors if len(t.shape) > 1}


def test_types_follow_layer_then_role_then_default(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shape=Shape(layers=4))
    quantize(str(model), tmp_path, [str(write(tmp_path))], name="m")
    found = types(tmp_path / "m-AGENT.gguf")
    assert found["token_embd"] == "Q4_K"
    assert found["output"] == "Q6_K"
    layers = [
        {n.split(".")[2]: t for n, t in found.items() if n.startswith(f"blk.{i}.")}
        for i in range(4)
    ]
    assert set(layers[0].values()) == set(layers[3].values()) == {"Q8_0"}
    assert set(layers[1].values()) == {"Q2_K"}  # the rule before it covers layer 0 only
    assert layers[2] == {
        "attn_q": "Q4_K",
        "attn_k": "Q4_K",
        "attn_v": "Q6_K",
        "attn_output": "Q4_K",
        "ffn_gate": "Q4_K",
        "ffn_up": "Q4_K",
        "ffn_down": "Q5_K",
    }


def test_each_tensor_has_the_bytes_of_the_published_file_with_its_type(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", shape=Shape(layers=4))
    overrides = Overrides(patterns=((".", "Q6_K"),))
    quantize(str(model), tmp_path, [str(write(tmp_path)), "Q8_0"], name="m")
    quantize(str(model), tmp_path / "six", ["Q6_K"], name="m", overrides=overrides)
    ours = read_gguf(tmp_path / "m-AGENT.gguf")
    for other in (tmp_path / "m-Q8_0.gguf", tmp_path / "six" / "m-Q6_K.gguf"):
        theirs = read_gguf(other)
        same = [n for n, t in ours.tensors.items() if t.ggml_type == theirs.tensors[n].ggml_type]
        assert sum(len(ours.tensors[name].shape) > 1 for name in same) >= 2
        assert all(ours.read(name) == theirs.read(name) for name in same)


def test_llama_cpp_loads_it_and_knows_its_type(tmp_path: Path) -> None:
    from llama_cpp import Llama

    model = write_checkpoint(tmp_path / "model")
    quantize(str(model), tmp_path, [str(write(tmp_path))], name="m")
    llama = Llama(str(tmp_path / "m-AGENT.gguf"), n_ctx=32, n_threads=1, verbose=False)
    assert llama.metadata["general.file_type"] == "7"  # mostly Q8_0: both layers are ends
    llama.close()


def test_a_tied_embedding_takes_the_type_of_the_head_it_is(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", tied=True)
    quantize(str(model), tmp_path, [str(write(tmp_path))], name="m")
    assert types(tmp_path / "m-AGENT.gguf")["token_embd"] == "Q6_K"


def test_options_go_before_the_file(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    options = Overrides(patterns=(("ffn_up", "Q3_K"),), leave_output=True)
    quantize(str(model), tmp_path, [str(write(tmp_path))], name="m", overrides=options)
    found = types(tmp_path / "m-AGENT.gguf")
    assert found["blk.0.ffn_up"] == "Q3_K"
    assert found["output"] == "BF16"


def test_rows_that_do_not_divide_fall_back_and_say_so(tmp_path: Path) -> None:
    shape = Shape(hidden=288, intermediate=544, heads=9, kv_heads=3)
    model = write_checkpoint(tmp_path / "model", shape=shape)
    path = write(tmp_path, "name: M\ndefault: Q4_K\n")
    job = quantize(str(model), tmp_path, [str(path)], name="m")
    assert set(types(tmp_path / "m-M.gguf").values()) == {"Q5_0"}
    (warning,) = job.plan.artifacts[0].warnings
    assert warning.startswith("16 tensors have rows that do not divide into Q4_K")


def test_experts_are_matrices_of_their_role(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    model = write_family(tmp_path / "model", "mixtral", vocabulary, vocab_size=320)
    path = write(tmp_path, "name: M\ndefault: Q4_K\nroles: {ffn_down: Q6_K}\n")
    quantize(str(model), tmp_path, [str(path)], name="m")
    found = types(tmp_path / "m-M.gguf")
    assert found["blk.0.ffn_down_exps"] == "Q6_K"
    assert found["blk.0.ffn_up_exps"] == "Q4_K"


def test_a_type_that_needs_an_imatrix_is_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    path = write(tmp_path, "name: M\ndefault: IQ2_XXS\nroles: {output: Q6_K, token_embd: Q6_K}\n")
    with pytest.raises(InputError, match=r"M stores blk\.0\.attn_k\.weight as IQ2_XXS.*imatrix"):
        quantize(str(model), tmp_path / "out", [str(path)], name="m")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: M\ndefault: Q4_K\nroles: {attn_w: Q6_K}", "did you mean 'attn_v'"),
        ("name: M\ndefault: Q9_K", "'Q9_K' is not a ggml type"),
        ("name: M\ndefault: Q4_K\nlayers: [{type: Q8_0}]", "names no layer"),
        ("name: M\ndefault: Q4_K\nlayers: [{first: -1, type: Q8_0}]", "greater than or equal"),
        ("name: Q4_K_M\ndefault: Q4_K", "Q4_K_M is another target's"),
        ("name: FP8_DYNAMIC\ndefault: Q4_K", "FP8_DYNAMIC is another target's"),
        ("name: BPW_5\ndefault: Q4_K", "BPW_5 is another target's"),
        ("name: FIT_5GB\ndefault: Q4_K", "FIT_5GB is another target's"),
        ("name: a/b\ndefault: Q4_K", "should match pattern"),
        ("default: Q4_K", "name: Field required"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read_own_mixture(write(tmp_path, text))


@pytest.mark.parametrize(
    "pattern", ["(", "(?P<x>attn_v)", r"attn_v\Z", "a{99999999999}", "(" * 9999]
)
def test_a_pattern_that_is_none_in_lower_case(pattern: str) -> None:
    with pytest.raises(InputError, match="not a regular expression"):
        parse_pattern(f"{pattern}=Q8_0")
    assert parse_pattern("ATTN_V=q8_0") == ("attn_v", "Q8_0")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    path = str(write(tmp_path))
    with pytest.raises(InputError, match="another target is called AGENT too"):
        quantize(str(model), tmp_path / "out", [path, path], name="m", dry_run=True)
