"""Static FP8 and the scales of an FP8 KV cache are what llm-compressor's `oneshot` makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from convert.errors import InputError
from quantize.calibrate import calibrate
from quantize.calibration import Calibration
from quantize.calibration_text import BUNDLED, read_calibration_text
from quantize.job import quantize
from tests.miniature import change_json, write_checkpoint
from tests.quantize.nano import NANO, tensors, write_conversations, write_nano_in_float32
from verify.lint.finding import Severity
from verify.lint.lint import lint

CACHE = {
    "num_bits": 8,
    "type": "float",
    "strategy": "tensor",
    "dynamic": False,
    "symmetric": True,
    "observer": "static_minmax",  # its default observer forgets all batches but the last
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "few.jsonl", 5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nano_in_float32(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory, source: Path, data: Path) -> Calibration:
    out = tmp_path_factory.mktemp("calibration")
    return calibrate(str(source), out, data, chunk_tokens=256)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, source: Path, calibration: Calibration) -> Path:
    out = tmp_path_factory.mktemp("ours")
    quantize(str(source), out, ["FP8"], calibration=calibration.folder, kv_cache=True, name="m")
    return out / "m-FP8"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, source: Path, data: Path) -> Path:
    """What `oneshot` saves, given the same chunks of ids."""
    from datasets import Dataset, disable_progress_bars
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from loguru import logger

    logger.disable("llmcompressor")
    disable_progress_bars()
    out = tmp_path_factory.mktemp("theirs")
    chunks = read_calibration_text(source, data, 256).chunks
    rows = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in chunks]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    recipe = QuantizationModifier(
        targets="Linear", scheme="FP8", ignore=["lm_head"], kv_cache_scheme=CACHE
    )
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        num_calibration_samples=len(rows),
        max_seq_length=256,
        propagate_error=False,  # its default calibrates a layer on what quantized layers give
    )
    model.save_pretrained(out, save_compressed=True)
    return out


def test_weights_and_scales_are_those_of_the_peer(ours: Path, theirs: Path) -> None:
    wanted, found = dict(tensors(theirs)), dict(tensors(ours))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        if name.endswith(("input_scale", ".k_scale", ".v_scale")):
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=0)
        else:
            assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_the_configuration_is_that_of_the_peer_but_for_the_embedding(
    ours: Path, theirs: Path
) -> None:
    wanted, found = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (theirs, ours)
    )
    assert found.pop("ignore") == ["lm_head", "model.embed_tokens"]
    assert wanted.pop("ignore") == ["lm_head"]
    assert found == wanted


def test_side_files_are_the_sources_and_nothing_cuts_prompts(ours: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (ours / name).read_bytes() == (NANO / name).read_bytes()
    assert json.loads((ours / "tokenizer.json").read_text())["truncation"] is None


def worse_than_a_note(folder: Path) -> list[str]:
    return [f.name for f in lint(folder).findings if f.severity is not Severity.NOTE]


def test_a_fresh_folder_has_nothing_to_lint(ours: Path) -> None:
    assert worse_than_a_note(ours) == []


def test_scales_of_the_cache_go_with_any_folder(tmp_path: Path, calibration: Calibration) -> None:
    targets = ["FP8_DYNAMIC", "Q4_K_M"]
    job = quantize(
        str(NANO), tmp_path, targets, calibration=calibration.folder, kv_cache=True, name="m"
    )
    found = dict(tensors(tmp_path / "m-FP8_DYNAMIC"))
    for layer, (key, value) in enumerate(zip(calibration.keys, calibration.values, strict=True)):
        prefix = f"model.layers.{layer}.self_attn."
        for name, absmax in (("k_scale", key), ("v_scale", value)):
            wanted = torch.tensor([absmax]) / 448
            assert torch.equal(found[prefix + name], wanted.to(torch.bfloat16))
    assert not any(name.endswith("input_scale") for name in found)
    assert worse_than_a_note(tmp_path / "m-FP8_DYNAMIC") == []
    assert job.results[0].artifact.recipe["calibration_sha256"] == calibration.sha256


def test_conversations_are_calibrated_with_on_the_way(tmp_path: Path, data: Path) -> None:
    quantize(str(NANO), tmp_path, ["FP8"], calibration=data, name="m")
    made = calibrate(str(NANO), tmp_path / "calibration", data)  # it is there and is kept
    found = dict(tensors(tmp_path / "m-FP8"))
    for module, absmax in made.inputs.items():
        scale = found[f"{module}.input_scale"]
        assert scale.item() == pytest.approx(absmax / 448, rel=2**-8)


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (["FP8"], {}, "FP8 needs what is known of activations: pass --calibration"),
        (["FP8_DYNAMIC"], {"kv_cache": True}, "--kv-cache-fp8 needs what is known"),
        (["Q8_0"], {"kv_cache": True}, "--kv-cache-fp8 is for folders for vLLM"),
        (["FP8"], {"calibration": BUNDLED, "dry_run": True}, "a dry run calibrates nothing"),
        (["FP8"], {"calibration": NANO}, "not a complete calibration"),
    ],
)
def test_what_is_missing_is_said(
    tmp_path: Path, targets: list[str], options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        quantize(str(NANO), tmp_path, targets, name="m", **options)


def test_a_calibration_of_another_model_is_refused(
    tmp_path: Path, calibration: Calibration
) -> None:
    other = write_checkpoint(tmp_path / "other")
    with pytest.raises(InputError, match="made from another model"):
        quantize(str(other), tmp_path / "out", ["FP8"], calibration=calibration.folder)


def test_a_calibration_whose_files_were_changed_is_refused(
    tmp_path: Path, calibration: Calibration
) -> None:
    for name in ("imatrix.gguf", "activations.json", "tokens.npy", "calibration.json"):
        (tmp_path / name).write_bytes((calibration.folder / name).read_bytes())
    change_json(tmp_path / "activations.json", keys=[1.0])
    with pytest.raises(InputError, match=r"not the file that calibration\.json describes"):
        quantize(str(NANO), tmp_path / "out", ["FP8"], calibration=tmp_path)


def test_a_matrix_that_no_token_reached_has_no_scale(calibration: Calibration) -> None:
    assert np.isfinite(calibration.input_absmax("model.layers.0.self_attn.q_proj"))
    with pytest.raises(InputError, match=r"no token of the calibration text reached model\.x"):
        calibration.input_absmax("model.x")
