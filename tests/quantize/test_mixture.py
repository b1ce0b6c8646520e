"""Which tensor gets which type: llama.cpp's dry run, and what is known of published files."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from convert.authorship import Authorship
from convert.cast import Cast
from convert.families.llama import LLAMA
from convert.gguf_plan import GGUFOutput, gguf_outputs, plan_gguf, quantized_order, with_schemes
from convert.metadata import model_fields
from convert.model_spec import ModelSpec, read_model_spec
from convert.plan import PlannedArtifact
from quantize.choice import Choice
from quantize.ggml import Ggml
from quantize.mixture import choose_types
from quantize.mixture_table import MIXTURES, more_bits
from tests.families import required_infos
from tests.miniature import Shape, config
from tests.peers import llama_types

SHAPES = {
    "3.2-3B": (Shape(3072, 8192, 28, 24, 8, 128256), True),
    "3.1-8B": (Shape(4096, 14336, 32, 32, 8, 128256), False),
    "3.1-70B": (Shape(8192, 28672, 80, 64, 8, 128256), False),
    "3.1-405B": (Shape(16384, 53248, 126, 128, 8, 128256), False),
    "2-13B": (Shape(5120, 13824, 40, 40, 40, 32000), False),
    "1-65B": (Shape(8192, 22016, 80, 64, 64, 32000), False),  # 80 layers, but no "70B"
    "odd": (Shape(1056, 2848, 11, 11, 11, 4000), True),  # falls back to 32-value blocks
}
SIZES_GIB = {
    "3.2-3B": (3.18, 2.45, 2.16, 1.87),
    "3.1-8B": (7.95, 6.14, 5.33, 4.58),
    "3.1-70B": (69.82, 53.91, 46.51, 39.59),
    "3.1-405B": (401.62, 310.07, 266.95, 226.37),
}
"""Q8_0, Q6_K, Q5_K_M, Q4_K_M by the dry run of llama-quantize; the 8B row is also published."""


def model(folder: Path, name: str) -> tuple[ModelSpec, list[GGUFOutput]]:
    """A model of real shape: its config, and its tensors in llama-quantize's order."""
    shape, tied = SHAPES[name]
    path = folder / "config.json"
    path.write_text(json.dumps(config(shape, tied=tied)))
    spec = read_model_spec(path)
    outputs = gguf_outputs(spec, LLAMA.recognise(spec, required_infos(spec)))
    order = {t.name: i for i, t in enumerate(quantized_order([o.tensor for o in outputs]))}
    return spec, sorted(outputs, key=lambda output: order[output.tensor.name])


def planned_bf16(folder: Path, spec: ModelSpec, outputs: list[GGUFOutput]) -> PlannedArtifact:
    values = sum(math.prod(output.tensor.shape) for output in outputs)
    fields = model_fields(
        LLAMA, spec, folder, authorship=Authorship(), parameters=values, file_type=32
    )
    tensors = with_schemes(outputs, lambda output: Cast("BF16"))
    return plan_gguf("m", "BF16", fields, tensors)


@pytest.mark.parametrize("name", SHAPES)
def test_types_equal_llama_cpp_s_dry_run(tmp_path: Path, name: str) -> None:
    spec, outputs = model(tmp_path, name)
    (file,) = planned_bf16(tmp_path, spec, outputs).files
    sparse = tmp_path / "m.gguf"
    sparse.write_bytes(file.header)
    with sparse.open("r+b") as stream:
        stream.truncate(file.size_bytes)
    for mixture in MIXTURES.values():
        theirs = llama_types(sparse, mixture.name)
        choices = choose_types(spec, mixture, outputs)
        names = [output.tensor.name for output in outputs]
        ours = {n: choices[n].ggml_type if n in choices else "F32" for n in names}
        assert ours == theirs, mixture.name
        assert list(ours) == list(theirs), "the order of tensors in the file"


@pytest.mark.parametrize("name", SIZES_GIB)
def test_sizes_of_real_models(tmp_path: Path, name: str) -> None:
    spec, outputs = model(tmp_path, name)
    published = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
    for mixture, expected in zip(published, SIZES_GIB[name], strict=True):
        choices = choose_types(spec, MIXTURES[mixture], outputs)
        size = 0
        for tensor in (output.tensor for output in outputs):
            kind = choices.get(tensor.name, Choice("F32")).ggml_type
            scheme = Cast("F32") if kind == "F32" else Ggml(kind)
            size += sum(p.size_bytes(tensor.rows) for p in scheme.parts(tensor.shape, "BF16"))
        assert round(size / 2**30, 2) == expected, mixture


def test_8b_q4_k_m_has_the_type_counts_llama_cpp_prints_for_it(tmp_path: Path) -> None:
    spec, outputs = model(tmp_path, "3.1-8B")
    counts = Counter(c.ggml_type for c in choose_types(spec, MIXTURES["Q4_K_M"], outputs).values())
    assert counts == {"Q4_K": 193, "Q6_K": 33}
    assert len(outputs) - counts.total() == 66  # norms and rope_freqs


def test_70b_q4_k_m_stores_half_the_values_in_five_bits(tmp_path: Path) -> None:
    spec, outputs = model(tmp_path, "3.1-70B")
    choices = choose_types(spec, MIXTURES["Q4_K_M"], outputs)
    counts = Counter(choice.ggml_type for choice in choices.values())
    assert counts == {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81}
    assert {n.split(".")[2] for n, c in choices.items() if c.ggml_type == "Q5_K"} == {"attn_v"}


def test_more_bits_go_to_the_first_and_last_eighth_and_every_third_between() -> None:
    picked = [i for i in range(32) if more_bits(i, 32)]
    assert picked == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [i for i in range(5) if more_bits(i, 5)] == [2, 4]  # an eighth of 5 is 0


def test_a_tied_embedding_gets_the_type_of_the_head(tmp_path: Path) -> None:
    for name, expected in (("3.2-3B", "Q6_K"), ("3.1-8B", "Q4_K")):
        spec, outputs = model(tmp_path, name)
        choices = choose_types(spec, MIXTURES["Q4_K_M"], outputs)
        assert choices["token_embd.weight"] == Choice(expected)


def test_a_fallback_says_what_it_stands_for(tmp_path: Path) -> None:
    spec, outputs = model(tmp_path, "odd")
    choices = choose_types(spec, MIXTURES["Q5_K_M"], outputs)
    assert choices["blk.3.attn_q.weight"] == Choice("Q5_1", "Q5_K")
    assert choices["blk.0.ffn_down.weight"].instead_of in ("Q5_K", "Q6_K")
    assert choices["token_embd.weight"] == Choice("Q8_0")  # the head's rule, not a fallback
