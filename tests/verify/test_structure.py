"""Structure: every damage it is meant to catch is made, and caught by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from convert.rendering import Tokenizer
from quantize.compressed_table import TARGETS
from quantize.job import quantize
from tests.families import CONFIGS, write_family
from tests.miniature import write_checkpoint, write_tokenizer
from tests.verify.conftest import evidence
from tests.verify.damage import Edit, rewrite_gguf
from tests.verify.lint.checkpoints import change_quantization, change_tensors, make
from verify.check import Outcome, State
from verify.evidence import Reference
from verify.structure import check_structure

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
Q = "blk.0.attn_q.weight"


def found(outcome: Outcome) -> dict[str, str]:
    assert outcome.verdict.state is State.FAIL
    return {finding.subject: finding.message for finding in outcome.findings}


def test_a_split_gguf_is_one_artifact_by_its_folder_or_its_first_file(
    reference: Reference, tmp_path: Path
) -> None:
    job = quantize(str(reference.folder), tmp_path, ["Q8_0"], name="m", max_file_bytes=300_000)
    first, *rest = sorted((tmp_path / "m-Q8_0").glob("*.gguf"))
    for path in (tmp_path / "m-Q8_0", first):
        given = evidence(reference, path)
        assert given.artifact.type == "Q8_0"
        assert given.artifact.size_bytes == job.plan.artifacts[0].size_bytes
        assert check_structure(given).verdict.state is State.PASS
    rest[0].rename(tmp_path / "away.gguf")
    assert check_structure(evidence(reference, first)).verdict.state is State.FAIL


@pytest.mark.parametrize("target", TARGETS)
def test_every_scheme_for_vllm_is_known_by_its_name_and_whole(
    reference: Reference, tmp_path: Path, target: str
) -> None:
    quantize(str(reference.folder), tmp_path, [target], name="m")
    folder = tmp_path / f"m-{target}"
    given = evidence(reference, folder)
    assert given.artifact.type == target
    outcome = check_structure(given)
    assert outcome.verdict.state is State.PASS, outcome.findings
    stored = load_file(folder / "model.safetensors")
    gone = next(name for name in stored if "q_proj.weight_" in name)
    save_file({n: t for n, t in stored.items() if n != gone}, folder / "model.safetensors")
    (folder / "model.safetensors.index.json").unlink()
    assert "missing" in found(check_structure(given))[gone]


@pytest.mark.parametrize("target", ["F32", "Q8_0", "FP8_DYNAMIC"])
def test_undamaged_artifacts_pass(
    reference: Reference, artifacts: dict[str, Path], target: str
) -> None:
    outcome = check_structure(evidence(reference, artifacts[target]))
    assert outcome.verdict.state is State.PASS, outcome.findings
    numbers = outcome.verdict.numbers
    assert numbers["tensors_expected"] == numbers["tensors_right"]


def drop(name: str) -> Edit:
    return lambda values: values.pop(name)


def put(name: str, value: Any) -> Edit:
    return lambda values: values.__setitem__(name, value)


NARROW = (np.zeros((128, 256), dtype=np.float32), gguf.GGMLQuantizationType.F32)


@pytest.mark.parametrize(
    ("tensors", "subject", "message"),
    [
        (drop(Q), Q, "missing"),
        (drop("rope_freqs.weight"), "rope_freqs.weight", "missing"),
        (drop("output.weight"), "output.weight", "missing"),
        (put(Q, NARROW), Q, "shape [128, 256], expected [256, 256]"),
        (put("blk.2.attn_q.weight", NARROW), "blk.2.attn_q.weight", "nothing in the source"),
    ],
)
def test_a_tensor_that_is_not_as_in_the_source(
    reference: Reference,
    artifacts: dict[str, Path],
    tmp_path: Path,
    tensors: Edit,
    subject: str,
    message: str,
) -> None:
    path = rewrite_gguf(artifacts["F32"], tmp_path / "broken.gguf", tensors=tensors)
    named = found(check_structure(evidence(reference, path)))
    assert message in named[subject]
    assert len(named) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.freq_base", 10000.0),
        ("llama.block_count", 3),
        ("llama.attention.head_count_kv", 8),
        ("llama.context_length", 4096),
        ("llama.rope.dimension_count", 16),
        ("llama.attention.value_length", 64),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama.attention.sliding_window", 512),
        ("llama.attention.causal", False),
        ("llama.expert_count", 8),
        ("llama.no_such_key", 1),
        ("general.type", "adapter"),
        ("general.quantization_version", 1),
        ("general.sampling.top_p", 0.5),
        ("general.sampling.temp", 0.1),
    ],
)
def test_a_header_that_contradicts_the_config(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, key: str, value: Any
) -> None:
    path = rewrite_gguf(artifacts["F32"], tmp_path / "broken.gguf", fields=put(key, value))
    assert list(found(check_structure(evidence(reference, path)))) == [key]


@pytest.mark.parametrize(
    "stated",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 1.0},
        {"llama.attention.sliding_window": 0, "llama.attention.causal": True},
        {"llama.expert_count": 0, "llama.expert_used_count": 0},
        {"llama.attention.head_count_kv": [4, 4], "llama.feed_forward_length": [512, 512]},
        {"qwen3.rope.freq_base": 1.0},
    ],
)
def test_what_changes_nothing_that_is_computed_is_let_pass(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, stated: dict[str, Any]
) -> None:
    def edit(values: dict[str, Any]) -> None:
        for key in stated:
            values.pop(key, None)
        values.update(stated)

    path = rewrite_gguf(artifacts["F32"], tmp_path / "other.gguf", fields=edit)
    outcome = check_structure(evidence(reference, path))
    assert outcome.verdict.state is State.PASS, outcome.findings


def without(*keys: str) -> Edit:
    def edit(values: dict[str, Any]) -> None:
        for key in keys:
            del values[key]

    return edit


def test_keys_may_be_missing_where_llama_cpp_takes_the_same_value(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """As converters of other years left them out; the rope base is none of them."""
    keys = ("attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size")
    left_out = [f"llama.{key}" for key in keys] + ["general.sampling.top_p", "general.type"]
    path = rewrite_gguf(artifacts["F32"], tmp_path / "old.gguf", fields=without(*left_out))
    outcome = check_structure(evidence(reference, path))
    assert outcome.verdict.state is State.PASS, outcome.findings
    path = rewrite_gguf(path, tmp_path / "no.gguf", fields=without("llama.rope.freq_base"))
    assert found(check_structure(evidence(reference, path))) == {
        "llama.rope.freq_base": "is None, config.json says 500000.0"
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_header_of_every_family_says_what_its_config_says(
    reference: Reference, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "vocabulary").mkdir()
    write_tokenizer(tmp_path / "vocabulary")
    source = write_family(tmp_path / "s", kind, tmp_path / "vocabulary", vocab_size=320)
    quantize(str(source), tmp_path, ["Q8_0"], name="m")
    base = replace(reference, checkpoint=Checkpoint.open(source))
    outcome = check_structure(evidence(base, tmp_path / "m-Q8_0.gguf"))
    assert outcome.verdict.state is State.PASS, outcome.findings


def test_a_router_stays_in_sixteen_bits(reference: Reference, tmp_path: Path) -> None:
    (tmp_path / "vocabulary").mkdir()
    write_tokenizer(tmp_path / "vocabulary")
    source = write_family(tmp_path / "s", "mixtral", tmp_path / "vocabulary", vocab_size=320)
    quantize(str(source), tmp_path, ["W8A8"], name="m")
    base = replace(reference, checkpoint=Checkpoint.open(source))
    outcome = check_structure(evidence(base, tmp_path / "m-W8A8"))
    assert outcome.verdict.state is State.PASS, outcome.findings
    gate = "model.layers.0.block_sparse_moe.gate.weight"
    change_tensors(tmp_path / "m-W8A8", lambda t: t.update({gate: t[gate].to(torch.int8)}))
    assert f"{gate}_scale" in found(check_structure(evidence(base, tmp_path / "m-W8A8")))


def test_every_attention_has_the_cache_scales_that_are_promised(
    reference: Reference, tmp_path: Path
) -> None:
    folder = make("FP8_KV", tmp_path)
    source = replace(reference, checkpoint=Checkpoint.open(tmp_path / "source"))
    assert check_structure(evidence(source, folder)).verdict.state is State.PASS
    k, v = (f"model.layers.1.self_attn.{letter}_scale" for letter in "kv")
    beside = "model.layers.1.self_attn.k_proj.k_scale"
    change_tensors(folder, lambda tensors: tensors.update({beside: tensors.pop(k)}))
    assert check_structure(evidence(source, folder)).verdict.state is State.PASS
    change_tensors(folder, lambda tensors: tensors.pop(v))
    message = "missing; kv_cache_scheme promises it, and vLLM would compute with 1.0"
    assert found(check_structure(evidence(source, folder))) == {v: message}
    change_quantization(folder, lambda q: q["kv_cache_scheme"].update(dynamic=True))
    assert check_structure(evidence(source, folder)).verdict.state is State.PASS


def test_a_cache_scale_of_another_shape(reference: Reference, tmp_path: Path) -> None:
    folder = make("FP8_KV", tmp_path)
    source = replace(reference, checkpoint=Checkpoint.open(tmp_path / "source"))
    name = "model.layers.0.self_attn.k_scale"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(4).bfloat16()}))
    assert found(check_structure(evidence(source, folder))) == {name: "shape [4], expected [1]"}
    change_quantization(folder, lambda q: q["kv_cache_scheme"].update(strategy="attn_head"))
    messages = found(check_structure(evidence(source, folder)))
    assert name not in messages
    assert messages["model.layers.0.self_attn.v_scale"] == "shape [1], expected [4]"


def test_a_cut_file(reference: Reference, artifacts: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(artifacts["Q8_0"].read_bytes()[:-1000])
    assert "truncated" in found(check_structure(evidence(reference, path)))["cut.gguf"]


def damaged_folder(source: Path, target: Path, **edits: torch.Tensor | None) -> Path:
    folder = Path(shutil.copytree(source, target))
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    tensors = load_file(folder / "model.safetensors")
    for name, value in edits.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("edits", "subject", "message"),
    [
        ({Q_PROJ: None}, Q_PROJ, "missing"),
        ({Q_PROJ + "_scale": None}, Q_PROJ + "_scale", "missing"),
        ({"lm_head.weight": None}, "lm_head.weight", "missing"),
        ({Q_PROJ + "_scale": torch.ones(1)}, Q_PROJ + "_scale", "shape [1], expected [256, 1]"),
        ({"extra.weight": torch.ones(1)}, "extra.weight", "nothing in the source"),
        ({"model.norm.weight": torch.ones(256)}, "model.norm.weight", "is F32, expected BF16"),
    ],
)
def test_a_folder_with_a_wrong_tensor(
    reference: Reference,
    artifacts: dict[str, Path],
    tmp_path: Path,
    edits: dict[str, torch.Tensor | None],
    subject: str,
    message: str,
) -> None:
    folder = damaged_folder(artifacts["FP8_DYNAMIC"], tmp_path / "broken", **edits)
    assert message in found(check_structure(evidence(reference, folder)))[subject]


def test_a_folder_whose_config_changed(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 10000.0}))
    assert list(found(check_structure(evidence(reference, folder)))) == ["config.json: rope_theta"]


def test_a_folder_that_says_quantized_and_is_not(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reference.folder, tmp_path / "broken"))
    shutil.copy(artifacts["FP8_DYNAMIC"] / "config.json", folder / "config.json")
    assert "config.json says quantized" in str(found(check_structure(evidence(reference, folder))))


@pytest.mark.parametrize("scheme", ["FP8_BLOCK", "FP8"])
def test_scales_of_other_granularities(reference: Reference, tmp_path: Path, scheme: str) -> None:
    folder = make(scheme, tmp_path)
    source = replace(reference, checkpoint=Checkpoint.open(tmp_path / "source"))
    assert check_structure(evidence(source, folder)).verdict.state is State.PASS
    name = "model.layers.0.mlp.down_proj.weight_scale"
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(256, 1).bfloat16()}))
    expected = "[2, 4]" if scheme == "FP8_BLOCK" else "[1]"
    outcome = check_structure(evidence(source, folder))
    assert found(outcome) == {name: f"shape [256, 1], expected {expected}"}


def test_a_head_beside_a_tied_embedding_is_named(tmp_path: Path) -> None:
    """A GGUF of a tied model with a head of its own: the reference has no such tensor."""
    tied = write_checkpoint(tmp_path / "tied", tied=True)
    quantize(str(tied), tmp_path, ["Q8_0"], name="m")
    base = Reference(Checkpoint.open(tied), Tokenizer.open(tied), (), ())
    whole = tmp_path / "m-Q8_0.gguf"
    assert check_structure(evidence(base, whole)).verdict.state is State.PASS

    def untie(tensors: dict[str, Any]) -> None:
        tensors["output.weight"] = tensors["token_embd.weight"]

    broken = rewrite_gguf(whole, tmp_path / "untied.gguf", tensors=untie)
    message = found(check_structure(evidence(base, broken)))["output.weight"]
    assert "nothing in the source accounts for it" in message


def test_a_vocabulary_that_is_a_number_is_a_finding_and_no_crash(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = rewrite_gguf(
        artifacts["Q8_0"],
        tmp_path / "m.gguf",
        fields=lambda values: (
            values.update({"tokenizer.ggml.tokens": 5}),
            values.pop("llama.vocab_size"),
        ),
    )
    outcome = check_structure(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert "llama.vocab_size" in {finding.subject for finding in outcome.findings}
