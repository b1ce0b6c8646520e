"""GPTQ, AWQ and NVFP4 are what llm-compressor makes of the same ids, and nothing else of its comes.

What `oneshot` saves, called plainly, is compared tensor by tensor. Side files are the source's
bytes whatever lies in them: here generation settings that transformers refuses to save.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from convert.checkpoint import Checkpoint
from convert.conversation import read_conversations
from convert.errors import InputError, OutputError, UnsupportedError
from convert.rendering import Tokenizer, render
from convert.staging import STAGING_NAME
from quantize import calibrated
from quantize.abliteration.edit_folder import EditFolder, Recipe, TensorEdit, write_edit
from quantize.calibrate import calibrate
from quantize.calibration_text import read_calibration_text
from quantize.compressed_table import ONESHOT
from quantize.compressed_tensors import quantization_config
from quantize.job import quantize
from tests.command import command
from tests.families import write_family
from tests.miniature import change_json, write_checkpoint, write_tokenizer
from tests.quantize.nano import NANO, tensors, write_conversations, write_nano_in_float32
from verify.abliteration.stored import open_tensors
from verify.artifact import open_artifact
from verify.check import State
from verify.engines.activations import ROUNDED_TO_FP4, WEIGHTS_ONLY
from verify.engines.transformers import TransformersEngine
from verify.evidence import Evidence, Reference
from verify.gate import read_gate
from verify.lint.finding import Severity
from verify.lint.lint import lint
from verify.structure import check_structure
from verify.weights import check_weights

SIDE_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of hermes-nano: a grid search over five takes AWQ half a minute."""
    folder = write_nano_in_float32(tmp_path_factory.mktemp("source"), layers=2)
    change_json(folder / "generation_config.json", do_sample=False, temperature=0.6)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data") / "few.jsonl", 20)


class Made(dict[str, Path]):
    """The folders by target, each made when it is first looked at."""

    def __init__(self, source: Path, data: Path, out: Path) -> None:
        super().__init__()
        self.source, self.data, self.out = source, data, out

    def __missing__(self, target: str) -> Path:
        quantize(str(self.source), self.out, [target], calibration=self.data, name="m")
        assert not (self.out / "calibration").exists()  # only the text was asked for
        self[target] = self.out / f"m-{target}"
        return self[target]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, source: Path, data: Path) -> Made:
    return Made(source, data, tmp_path_factory.mktemp("ours"))


def recipe_of(target: str) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    if target == "W4A16_GPTQ":
        return [GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])]
    scheme = {"W4A16_AWQ": "W4A16_ASYM"}.get(target, target)
    rounding = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
    return [AWQModifier(duo_scaling="both"), rounding] if "AWQ" in target else [rounding]


@contextmanager
def nothing_pinned() -> Iterator[None]:
    """On a CPU, 0.14.0.1's AWQ fails for want of an accelerator to pin memory for."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IntermediatesCache, "pin_memory", lambda *_: None)
        yield


def save_plainly(source: Path, data: Path, target: str, out: Path) -> Path:
    """`oneshot` over the same ids, in the same order, and its own `save_pretrained`."""
    from datasets import Dataset, disable_progress_bars
    from llmcompressor import oneshot
    from loguru import logger

    logger.disable("llmcompressor")
    disable_progress_bars()
    chunks = read_calibration_text(source, data).chunks
    rows = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in chunks]
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    model.generation_config = transformers.GenerationConfig()
    with nothing_pinned():
        oneshot(
            model=model,
            dataset=Dataset.from_list(rows),
            recipe=recipe_of(target),
            num_calibration_samples=len(rows),
            max_seq_length=512,
            shuffle_calibration_samples=False,
        )
    model.save_pretrained(out, save_compressed=True)
    return out


@pytest.mark.parametrize("target", ONESHOT)
def test_tensors_and_configuration_are_those_of_the_peer(
    tmp_path: Path, source: Path, data: Path, ours: Made, target: str
) -> None:
    theirs = save_plainly(source, data, target, tmp_path / "theirs")
    wanted, found = dict(tensors(theirs)), dict(tensors(ours[target]))
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    stated = json.loads((ours[target] / "config.json").read_text())
    quantization = stated.pop("quantization_config")
    assert stated == json.loads((source / "config.json").read_text())
    theirs_stated = json.loads((theirs / "config.json").read_text())["quantization_config"]
    assert quantization.pop("ignore") == ["lm_head", "model.embed_tokens"]
    assert theirs_stated.pop("ignore") == ["lm_head"]
    theirs_stated["config_groups"] = {target: theirs_stated["config_groups"]["group_0"]}
    assert quantization == theirs_stated


@pytest.mark.parametrize("target", ONESHOT)
def test_side_files_are_the_sources_and_nothing_cuts_prompts(
    source: Path, ours: Made, target: str
) -> None:
    for name in SIDE_FILES:
        assert (ours[target] / name).read_bytes() == (source / name).read_bytes()
    assert json.loads((ours[target] / "tokenizer.json").read_text())["truncation"] is None
    made_here = {"config.json", "model.safetensors", "model.safetensors.index.json"}
    wanted = {path.name for path in source.iterdir()} | made_here | {"hermes-quant.json"}
    assert {path.name for path in ours[target].iterdir()} == wanted


@pytest.mark.parametrize("target", ONESHOT)
def test_it_is_known_by_its_name_whole_and_without_lints(
    source: Path, ours: Made, target: str
) -> None:
    artifact = open_artifact(ours[target])
    assert artifact.type == target
    with Checkpoint.open(source) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(source), (), ())
        given = Evidence(reference, artifact, read_gate(None).of(target))
        outcome = check_structure(given)
    assert outcome.verdict.state is State.PASS, outcome.findings
    findings = lint(ours[target]).findings
    worse = [f.name for f in findings if f.severity is not Severity.NOTE]
    assert set(worse) <= {"tensor-parallel-limited"}, worse  # nano's rows are two groups long


@pytest.mark.parametrize("target", ONESHOT)
def test_its_weights_are_the_sources_as_far_as_the_method_leaves_them(
    source: Path, ours: Made, target: str
) -> None:
    artifact = open_artifact(ours[target])
    with Checkpoint.open(source) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(source), (), ())
        outcome = check_weights(Evidence(reference, artifact, read_gate(None).of(target)))
    assert outcome.verdict.state is State.PASS, outcome.findings
    assert outcome.verdict.numbers["not_compared"] == 0
    assert bool(outcome.verdict.numbers["rescaled"]) is (target == "W4A16_AWQ")


@pytest.mark.parametrize("target", ONESHOT)
def test_the_sidecar_says_what_computed_it_over_what(ours: Made, data: Path, target: str) -> None:
    said = json.loads((ours[target] / "hermes-quant.json").read_text())
    version = calibrated.installed(target)
    assert f"llmcompressor {version}" in said["numerics"]
    assert said["recipe"]["oneshot"]["versions"]["llmcompressor"] == version
    assert said["recipe"]["oneshot"]["text"]["name"] == data.name


def mean_divergence(reference: TransformersEngine, engine: TransformersEngine) -> float:
    """Mean KL divergence over every token of held-out prompts, in nats."""
    tokenizer = Tokenizer.open(NANO)
    found = []
    for conversation in read_conversations(NANO / "prompts" / "single.jsonl")[:8]:
        ids = torch.tensor([render(tokenizer, conversation)])
        with torch.inference_mode():
            p, q = (e._model(ids).logits[0].log_softmax(-1) for e in (reference, engine))
        found.append((p.exp() * (p - q)).sum(-1))
    tokenizer.close()
    return float(torch.cat(found).mean())


def test_gptq_answers_closer_to_the_reference_than_rounding_to_nearest(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = write_nano_in_float32(tmp_path / "source")
    data = write_conversations(tmp_path / "d.jsonl", 12)
    quantize(str(source), tmp_path, ["W4A16_GPTQ"], calibration=data, name="m")
    quantize(str(source), tmp_path, ["W4A16"], name="m")
    reference, kl = TransformersEngine(source), {}
    for target in ("W4A16_GPTQ", "W4A16"):
        engine = TransformersEngine(tmp_path / f"m-{target}")
        kl[target] = mean_divergence(reference, engine)
        engine.close()
    assert kl["W4A16_GPTQ"] < 0.8 * kl["W4A16"], kl


def test_every_folder_runs_and_only_nvfp4_rounds_activations(
    tmp_path: Path, source: Path, ours: Made
) -> None:
    quantize(str(source), tmp_path, ["NVFP4A16"], name="m")
    reference, kl, computed = TransformersEngine(source), {}, {}
    folders = {target: ours[target] for target in ONESHOT}
    for target, folder in {**folders, "NVFP4A16": tmp_path / "m-NVFP4A16"}.items():
        engine = TransformersEngine(folder)
        kl[target], computed[target] = mean_divergence(reference, engine), engine.info.activations
        engine.close()
    unrounded = TransformersEngine(ours["NVFP4"], activation_bits=16)
    assert mean_divergence(reference, unrounded) == pytest.approx(kl["NVFP4A16"], rel=1e-3)
    assert 1.1 * kl["NVFP4A16"] < kl["NVFP4"]
    assert max(kl.values()) < 1
    assert computed.pop("NVFP4") == ROUNDED_TO_FP4
    assert set(computed.values()) == {WEIGHTS_ONLY}


def test_a_calibration_s_own_text_gives_the_same_folder_beside_others(
    tmp_path: Path, source: Path, data: Path, ours: Made
) -> None:
    made = calibrate(str(source), tmp_path / "cal", data)
    targets = ["Q8_0", "NVFP4", "FP8"]
    job = quantize(str(source), tmp_path, targets, calibration=made.folder, name="m", kv_cache=True)
    assert [result.artifact.target for result in job.results] == targets
    assert [planned.target for planned in job.plan.artifacts] == targets
    found, wanted = dict(tensors(tmp_path / "m-NVFP4")), dict(tensors(ours["NVFP4"]))
    scales = {name for name in found if name.endswith((".k_scale", ".v_scale"))}
    assert len(scales) == 2 * len(made.keys)
    assert found.keys() - scales == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert not (tmp_path / STAGING_NAME).exists()


@pytest.mark.parametrize("target", ONESHOT)
def test_sizes_are_known_before_anything_is_computed(
    tmp_path: Path, source: Path, data: Path, ours: Made, target: str
) -> None:
    made = ours[target]
    job = quantize(str(source), tmp_path, [target], calibration=data, name="m", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    (planned,) = job.plan.artifacts
    for file in planned.files:
        assert (made.parent / file.path).stat().st_size == file.size_bytes
    assert "the whole model" in planned.notes[0]


@pytest.fixture
def copy(tmp_path: Path, ours: Made) -> Path:
    """An output folder in which NVFP4 is made already."""
    shutil.copytree(ours["NVFP4"], tmp_path / "out" / "m-NVFP4")
    return tmp_path / "out"


def test_a_finished_folder_is_kept_and_that_of_another_text_is_not_overwritten(
    tmp_path: Path, source: Path, data: Path, copy: Path
) -> None:
    before = (copy / "m-NVFP4" / "model.safetensors").stat().st_mtime_ns
    job = quantize(str(source), copy, ["NVFP4"], calibration=data, name="m")
    assert job.results[0].kept
    assert (copy / "m-NVFP4" / "model.safetensors").stat().st_mtime_ns == before
    other = write_conversations(tmp_path / "other.jsonl", 30)
    with pytest.raises(OutputError, match="exists and was not made from this source"):
        quantize(str(source), copy, ["NVFP4"], calibration=other, name="m")
    job = quantize(str(source), copy, ["NVFP4"], calibration=other, name="m", force=True)
    assert not job.results[0].kept
    assert (copy / "m-NVFP4" / "model.safetensors").stat().st_mtime_ns != before


def test_a_run_that_dies_leaves_nothing_of_it_and_all_that_was_finished(
    tmp_path: Path, source: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "out" / STAGING_NAME / "m-NVFP4.made"
    left.mkdir(parents=True)  # of a run that was killed
    (left / "model.safetensors").write_bytes(b"half")

    def dies(*arguments: Any) -> None:
        assert list(left.iterdir()) == []
        (left / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrated, "run_oneshot", dies)
    with pytest.raises(KeyboardInterrupt):
        quantize(str(source), tmp_path / "out", ["NVFP4", "Q8_0"], calibration=data, name="m")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"calibration", "m-Q8_0.gguf", "m-Q8_0.gguf.hermes-quant.json"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda t: t.pop("model.norm.weight"),
            r"m-NVFP4: model\.norm\.weight is missing; expected F32 \[256\] of .*llmc",
        ),
        (
            lambda t: t.update(extra=torch.zeros(1)),
            "extra is stored; expected no such tensor of .*llmcompressor",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(2)}),
            r"model\.norm\.weight is stored as F32 \[2\]; expected F32 \[256\] of .*llmc",
        ),
    ],
)
def test_tensors_that_were_not_planned_are_not_published(
    tmp_path: Path,
    source: Path,
    data: Path,
    ours: Made,
    monkeypatch: pytest.MonkeyPatch,
    damage: Any,
    message: str,
) -> None:
    made = tensors(ours["NVFP4"])

    def other_version(checkpoint: Path, target: str, dtype: str, chunks: Any, out: Path, _: Any):
        stored = dict(made)
        damage(stored)
        save_file(stored, out / "model.safetensors")
        return {}

    monkeypatch.setattr(calibrated, "run_oneshot", other_version)
    with pytest.raises(UnsupportedError, match=message):
        quantize(str(source), tmp_path / "out", ["NVFP4"], calibration=data, name="m")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("target", ONESHOT)
def test_what_is_missing_is_said(tmp_path: Path, source: Path, data: Path, target: str) -> None:
    with pytest.raises(InputError, match=f"{target} is computed over conversations: pass --cal"):
        quantize(str(source), tmp_path, [target])
    with pytest.raises(InputError, match=f"--numerics ct-sm90 is not for {target}, which llm-c"):
        quantize(str(source), tmp_path, [target], calibration=data, numerics="ct-sm90")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match=r"empty\.jsonl: "):
        quantize(str(source), tmp_path / "out", [target], calibration=tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="not a complete calibration"):
        quantize(str(source), tmp_path / "out", [target], calibration=tmp_path)
    assert not (tmp_path / "out").exists()


def test_without_the_library_one_line_names_the_extra(
    tmp_path: Path, source: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(calibrated, "version", missing)
    with pytest.raises(InputError, match=r"pip install 'hermes-quant\[calibrated\]'"):
        quantize(str(source), tmp_path, ["NVFP4"], calibration=data)


def test_a_mixture_and_a_quantized_folder_are_one_line_and_exit_2(
    tmp_path: Path, data: Path, ours: Made
) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    mixture = write_family(tmp_path / "m", "mixtral", vocabulary, vocab_size=320)
    for model, message in ((mixture, "a mixture of experts"), (ours["NVFP4"], "already quantized")):
        words = ["quantize", model, "--out", tmp_path / "out", "--to", "W4A16_GPTQ"]
        done = command(*words, "--calibration", data)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_checkpoint_of_two_dtypes_is_refused(tmp_path: Path, data: Path) -> None:
    norm = {"model.norm.weight": torch.ones(256)}
    source = write_checkpoint(tmp_path / "two", edit=norm)
    with pytest.raises(UnsupportedError, match="tensors in BF16 and F32; NVFP4 takes a checkpoint"):
        quantize(str(source), tmp_path / "out", ["NVFP4"], calibration=data)


def test_an_edit_on_the_way_is_refused_because_it_would_not_be_seen(
    tmp_path: Path, source: Path, data: Path
) -> None:
    direction = torch.eye(256)[0].numpy()
    line = TensorEdit(tensor="model.layers.0.self_attn.o_proj.weight", direction="r", strength=1)
    write_edit(tmp_path / "edit", EditFolder(Recipe(edits=(line,)), {"r": direction}))
    with pytest.raises(UnsupportedError, match="NVFP4 reads the checkpoint itself"):
        quantize(str(source), tmp_path, ["NVFP4"], calibration=data, abliterate=tmp_path / "edit")


@pytest.mark.parametrize("target", ONESHOT)
def test_their_codes_are_not_guessed_at_where_an_edit_is_looked_for(
    source: Path, ours: Made, target: str
) -> None:
    with (
        Checkpoint.open(source) as base,
        open_tensors(open_artifact(ours[target]), base) as stored,
        pytest.raises(UnsupportedError, match=f"{target} is no scheme whose codes are read here"),
    ):
        stored.values("model.layers.0.self_attn.o_proj.weight")


def test_a_cache_scale_is_refused_where_awq_changes_what_it_was_measured_of(
    tmp_path: Path, source: Path, data: Path
) -> None:
    """With as many key as query heads AWQ moves scales into v_proj: by up to 1.3 in hermes-nano."""
    wide = shutil.copytree(source, tmp_path / "wide")
    change_json(wide / "config.json", num_key_value_heads=8)
    stored = dict(tensors(wide))
    for name in [name for name in stored if name.endswith(("k_proj.weight", "v_proj.weight"))]:
        stored[name] = stored[name].repeat(2, 1)
    save_file(stored, wide / "model.safetensors")
    calibration = calibrate(str(wide), tmp_path / "cal", data).folder
    options: dict[str, Any] = {"calibration": calibration, "kv_cache": True, "dry_run": True}
    with pytest.raises(UnsupportedError, match="moves scales into v_proj, so that the calib"):
        quantize(str(wide), tmp_path / "out", ["W4A16_AWQ"], **options)
    quantize(str(wide), tmp_path / "out", ["W4A16_GPTQ", "NVFP4"], **options)


def test_what_another_run_finished_in_the_meantime_is_not_replaced(
    tmp_path: Path, source: Path, data: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It appears after the first look, before the folder is locked."""
    other = write_conversations(tmp_path / "other.jsonl", 30)
    monkeypatch.setattr("convert.job.split_finished", lambda planned, *_: ({}, list(planned)))
    before = (copy / "m-NVFP4" / "hermes-quant.json").read_bytes()
    assert quantize(str(source), copy, ["NVFP4"], calibration=data, name="m").results[0].kept
    with pytest.raises(OutputError, match="exists and was not made from this source"):
        quantize(str(source), copy, ["NVFP4"], calibration=other, name="m")
    assert (copy / "m-NVFP4" / "hermes-quant.json").read_bytes() == before


@pytest.mark.parametrize("target", ["W4A16_GPTQ", "NVFP4"])
def test_shards_keep_the_source_s_names(tmp_path: Path, target: str) -> None:
    source = write_checkpoint(tmp_path / "sharded", shards=3, dtype="F32", tied=False)
    data = tmp_path / "d.jsonl"
    message = {"role": "user", "content": "some words to look at " * 24}
    data.write_text(json.dumps({"id": "a", "messages": [message]}))
    quantize(str(source), tmp_path / "out", [target], calibration=data, name="m")
    names = {path.name for path in (tmp_path / "out" / f"m-{target}").glob("*.safetensors")}
    assert names == {path.name for path in source.glob("*.safetensors")}


def test_a_group_s_name_says_the_method_that_its_scheme_does_not() -> None:
    for target in ONESHOT:
        assert list(quantization_config(target)["config_groups"]) == [target]
