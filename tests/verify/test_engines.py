"""Engines against each other and against transformers' own generation; FP8 really in 8 bits."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.models.llama import modeling_llama

from convert.errors import CheckpointError, ContextError, UnsupportedError
from quantize.calibrate import calibrate
from quantize.job import quantize
from verify.artifact import open_artifact
from verify.engines import NARROWS, by_length
from verify.engines.activations import ROUNDED_BY_STORED, round_per_token
from verify.engines.llama_cpp import LlamaCppEngine
from verify.engines.llama_model import LlamaVocabulary
from verify.engines.log_probabilities import Passage
from verify.engines.opening import check_device, open_engine
from verify.engines.scripted import ScriptedEngine
from verify.engines.static_scales import round_by_scale
from verify.engines.torch_device import memory_for
from verify.engines.transformers import CACHE_BY_ONE, TransformersEngine

STOP = frozenset({260})
NO_STOP: frozenset[int] = frozenset()


def prompts(count: int, longest: int = 40) -> list[list[int]]:
    rng = random.Random(5)
    return [
        [257, *(rng.randrange(256) for _ in range(rng.randint(1, longest)))] for _ in range(count)
    ]


def transformers_model(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_batches_hold_every_prompt_once_and_longest_first() -> None:
    made = [[0] * n for n in (3, 9, 1, 9, 5)]
    assert by_length(made, 2) == [[1, 3], [4, 0], [2]]
    assert by_length([], 2) == []


def test_a_scripted_engine_stops_as_a_real_one_does() -> None:
    seen: list[tuple[int, int]] = []
    engine = ScriptedEngine(lambda prompt: [*prompt, 260, 7])
    replies = engine.generate(
        [[1], [2, 3]], max_new_tokens=2, stop_ids=STOP, on_progress=lambda *n: seen.append(n)
    )
    assert replies == [[1, 260], [2, 3]]
    assert engine.prompts_seen == [[1], [2, 3]]
    assert seen == [(1, 2), (2, 2)]


def test_batched_replies_are_transformers_own(reference_folder: Path) -> None:
    made = prompts(7)
    engine = TransformersEngine(reference_folder, batch=3)
    replies = engine.generate(made, max_new_tokens=8, stop_ids=NO_STOP)
    model = transformers_model(reference_folder)
    for prompt, reply in zip(made, replies, strict=True):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, top_p=None, eos_token_id=None
        )
        assert out[0, len(prompt) :].tolist() == reply
    again = engine.generate(made, max_new_tokens=8, stop_ids=NO_STOP)
    assert again == replies


def test_a_row_that_stops_leaves_the_others_as_they_were(reference_folder: Path) -> None:
    made = prompts(5)
    engine = TransformersEngine(reference_folder, batch=5)
    free = engine.generate(made, max_new_tokens=8, stop_ids=NO_STOP)
    stops = frozenset({free[0][1], free[3][4]})
    stopped = engine.generate(made, max_new_tokens=8, stop_ids=stops)
    for whole, cut in zip(free, stopped, strict=True):
        end = next((i for i, token in enumerate(whole) if token in stops), len(whole))
        assert cut == whole[: end + 1]


def test_llama_cpp_answers_as_transformers_does(
    reference_folder: Path, artifacts: dict[str, Path]
) -> None:
    made = prompts(9, longest=60)
    ours = TransformersEngine(reference_folder).generate(made, max_new_tokens=4, stop_ids=NO_STOP)
    for batch in (1, 4):
        engine = LlamaCppEngine(artifacts["F32"], batch=batch, kv_type="float32", threads=1)
        theirs = engine.generate(made, max_new_tokens=4, stop_ids=NO_STOP)
        engine.close()
        firsts = sum(a[0] == b[0] for a, b in zip(ours, theirs, strict=True))
        assert firsts == len(made)
        assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= len(made) - 1


def test_llama_cpp_forgets_the_prompt_before(artifacts: dict[str, Path]) -> None:
    made = prompts(3)
    engine = LlamaCppEngine(artifacts["Q8_0"], batch=1, threads=1)
    seen: list[tuple[int, int]] = []
    together = engine.generate(
        made, max_new_tokens=5, stop_ids=NO_STOP, on_progress=lambda *n: seen.append(n)
    )
    alone = [engine.generate([p], max_new_tokens=5, stop_ids=NO_STOP)[0] for p in made]
    assert together == alone
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert engine.generate([], max_new_tokens=5, stop_ids=NO_STOP) == []
    stop = together[0][1]
    stopped = engine.generate(made, max_new_tokens=5, stop_ids=frozenset({stop}))
    assert stopped[0] == together[0][: together[0].index(stop) + 1]
    engine.close()


def test_llama_cpp_reads_prompts_longer_than_its_batch(artifacts: dict[str, Path]) -> None:
    prompt = [257, *(i * 7 % 256 for i in range(700))]
    engine = LlamaCppEngine(artifacts["F32"], kv_type="float32", threads=1)
    (long,) = engine.generate([prompt], max_new_tokens=1, stop_ids=NO_STOP)
    engine.close()
    assert len(long) == 1


def test_what_llama_cpp_cannot_do_is_said(artifacts: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(artifacts["Q8_0"].read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match=r"cut\.gguf: llama\.cpp cannot load it: .+"):
        LlamaCppEngine(cut)
    with pytest.raises(CheckpointError, match="cannot load"):
        LlamaVocabulary(tmp_path / "absent.gguf")
    with pytest.raises(UnsupportedError, match="'q9'; known are"):
        LlamaCppEngine(artifacts["Q8_0"], kv_type="q9")
    engine = LlamaCppEngine(artifacts["Q8_0"], threads=1)
    with pytest.raises(CheckpointError, match="vocabulary of 320"):
        engine.generate([[320]], max_new_tokens=1, stop_ids=NO_STOP)
    engine.close()


def test_a_missing_weight_is_an_error_and_not_random_numbers(
    reference_folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    folder = Path(shutil.copytree(reference_folder, tmp_path / "lost"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no weight for model\.layers\.1\.mlp\.up_proj"):
        TransformersEngine(folder)


@pytest.mark.parametrize(("bits", "word"), [(8, "W8A8"), (16, "W8A16")])
def test_fp8_runs_with_activations_in_the_bits_that_it_says(
    artifacts: dict[str, Path], bits: int, word: str
) -> None:
    """The logits are those of a plain model whose linear layers round their input, or do not."""
    folder = artifacts["FP8_DYNAMIC"]
    engine = open_engine(open_artifact(folder), activation_bits=bits)
    assert word in engine.info.activations
    plain = _dequantized(folder)
    ids = torch.tensor(prompts(4, longest=1))
    with torch.inference_mode():
        got = engine._model(ids).logits
        w8a16 = plain(ids).logits
        for name, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.register_forward_pre_hook(lambda _, x: (round_per_token(x[0]),))
        w8a8 = plain(ids).logits
    noise = (w8a8 - w8a16).abs().max()
    assert noise > 1e-3
    asked, other = (w8a8, w8a16) if bits == 8 else (w8a16, w8a8)
    assert (got - asked).abs().max() < 0.05 * noise
    assert (got - other).abs().max() > 0.5 * noise
    engine.close()


def test_static_fp8_runs_with_activations_rounded_by_their_stored_scales(
    reference_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    message = {"role": "user", "content": "some words to look at " * 20}
    data.write_text(json.dumps({"id": "a", "messages": [message]}))
    made = calibrate(str(reference_folder), tmp_path / "cal", data, chunk_tokens=64)
    quantize(str(reference_folder), tmp_path, ["FP8"], calibration=made.folder, name="m")
    folder = tmp_path / "m-FP8"
    artifact = open_artifact(folder)
    engine = open_engine(artifact)
    assert artifact.type == "FP8"
    assert engine.info.activations == ROUNDED_BY_STORED
    plain, stored = _dequantized(folder), load_file(folder / "model.safetensors")
    ids = torch.tensor(prompts(4, longest=1))
    with torch.inference_mode():
        got = engine._model(ids).logits
        w8a16 = plain(ids).logits
        for name, module in plain.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                scale = stored[f"{name}.input_scale"].float()
                module.register_forward_pre_hook(
                    lambda _, x, scale=scale: (round_by_scale(x[0], scale),)
                )
        w8a8 = plain(ids).logits
    noise = (w8a8 - w8a16).abs().max()
    assert noise > 1e-3
    assert (got - w8a8).abs().max() < 0.05 * noise
    engine.close()


def test_a_folder_with_scales_of_the_cache_runs_with_the_cache_rounded(
    artifacts: dict[str, Path], reference_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    message = {"role": "user", "content": "some words to look at " * 20}
    data.write_text(json.dumps({"id": "a", "messages": [message]}))
    made = calibrate(str(reference_folder), tmp_path / "cal", data, chunk_tokens=64)
    targets, kept = ["FP8_DYNAMIC"], made.folder
    quantize(str(reference_folder), tmp_path, targets, calibration=kept, kv_cache=True, name="m")
    rounded = TransformersEngine(tmp_path / "m-FP8_DYNAMIC")
    plain = TransformersEngine(artifacts["FP8_DYNAMIC"])
    assert rounded.info.kv_type == "float8_e4m3, stored scales"
    assert plain.info.kv_type == "float32"
    (ids,) = prompts(1)
    with torch.inference_mode():
        a, b = (engine._model(torch.tensor([ids])).logits for engine in (rounded, plain))
    assert 1e-4 < (a - b).abs().max() < 0.2 * b.abs().max()
    rounded.close()
    plain.close()


def test_a_cache_asked_to_be_fp8_holds_what_e4m3_holds(
    artifacts: dict[str, Path], reference_folder: Path
) -> None:
    """Rounded by hand in an attention of our own; alike read at once and step by step."""
    engine = open_engine(open_artifact(artifacts["FP8_DYNAMIC"]), kv_type="fp8", activation_bits=16)
    plain = open_engine(open_artifact(artifacts["FP8_DYNAMIC"]), activation_bits=16)
    assert (engine.info.kv_type, plain.info.kv_type) == (CACHE_BY_ONE, "float32")
    made = prompts(6)
    long = Passage((257, *(i * 7 % 256 for i in range(60))), 1)
    (base,) = plain.score([long], top=32)
    (found,) = engine.score([Passage(long.ids, 1, base.candidates)], top=32)
    by_hand = _dequantized(artifacts["FP8_DYNAMIC"])
    for layer in by_hand.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _, __, out: round_by_scale(out, 1.0))
    rotate = modeling_llama.apply_rotary_pos_emb
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(
            modeling_llama,
            "apply_rotary_pos_emb",
            lambda q, k, *rest: (rotate(q, k, *rest)[0], round_by_scale(rotate(q, k, *rest)[1], 1)),
        )
        rows = by_hand(torch.tensor([long.ids])).logits[0, :-1].double().log_softmax(-1).numpy()
    expected = np.take_along_axis(rows, base.candidates, 1)
    moved = np.abs(expected - base.log_probs).max()
    assert moved > 1e-3
    assert np.abs(found.log_probs - expected).max() < 0.05 * moved
    replies = engine.generate(made, max_new_tokens=5, stop_ids=NO_STOP)
    for prompt, reply in zip(made, replies, strict=True):
        (scored,) = engine.score([Passage((*prompt, *reply), len(prompt))], top=4)
        assert scored.best[:, 0].tolist() == reply
    engine.close()
    plain.close()


def test_each_artifact_gets_the_cache_it_can_have(artifacts: dict[str, Path]) -> None:
    for kv_type, of_gguf, of_folder in (
        ("fp8", "float16", CACHE_BY_ONE), ("q8_0", "q8_0", "float32")
    ):  # fmt: skip
        for path, expected in ((artifacts["Q8_0"], of_gguf), (artifacts["FP8_DYNAMIC"], of_folder)):
            engine = open_engine(open_artifact(path), kv_type=kv_type)
            assert engine.info.kv_type == expected
            engine.close()


def test_narrow_is_the_checkpoint_in_its_own_sixteen_bits(reference_folder: Path) -> None:
    engine = TransformersEngine(reference_folder)
    engine.narrow()
    assert engine.info.dtype == "bfloat16"
    passage = Passage((257, *(i * 7 % 256 for i in range(60))), 1)
    (found,) = engine.score([passage], top=16)
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        reference_folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    with torch.inference_mode():
        rows = model(torch.tensor([passage.ids])).logits[0, :-1].double().log_softmax(-1).numpy()
    expected = np.take_along_axis(rows, found.candidates, 1)
    assert np.abs(found.log_probs - expected).max() < 1e-9
    engine.close()


def _dequantized(folder: Path) -> Any:
    """The FP8 folder's weights times their scales, in a model that knows nothing of FP8."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    del config.quantization_config
    model = transformers.LlamaForCausalLM(config).float().eval()
    stored = load_file(folder / "model.safetensors")
    weights = {
        name: value.float() * stored[f"{name}_scale"].float()
        if f"{name}_scale" in stored
        else value
        for name, value in stored.items()
        if not name.endswith("_scale")
    }
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model


def test_fp8_with_activations_left_alone_is_refused_unless_asked_for(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "w8a16"))
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    (folder / "config.json").write_text(json.dumps(config))
    engine = open_engine(open_artifact(folder), activation_bits=16)
    assert "W8A16" in engine.info.activations
    engine.close()
    with pytest.raises(
        UnsupportedError, match="not computed with activations rounded as its scheme says"
    ):
        TransformersEngine(folder)


def test_a_folder_is_computed_in_the_dtype_asked_for_and_says_so(
    reference_folder: Path, artifacts: dict[str, Path]
) -> None:
    made = prompts(5)
    rows = [Passage((*prompt, 5), len(prompt)) for prompt in made]
    wide = TransformersEngine(reference_folder)
    narrow = TransformersEngine(reference_folder, dtype="bfloat16", batch=3, threads=1)
    info = narrow.info
    assert (info.dtype, info.kv_type, info.activations) == ("bfloat16",) * 3
    assert (info.batch, info.threads) == (3, 1)
    assert NARROWS in wide.info.capabilities
    assert NARROWS not in info.capabilities, "it is narrow already: a floor of 0 would be a lie"
    model = transformers_model(reference_folder).to(torch.bfloat16)
    for passage, ours, theirs in zip(
        rows, wide.score(rows, top=320), narrow.score(rows, top=320), strict=True
    ):
        with torch.inference_mode():
            row = model(torch.tensor([passage.ids[:-1]])).logits[0, -1].float().log_softmax(-1)
        apart = np.abs(theirs.log_prob_of(5) - ours.log_prob_of(5)).max()
        assert 1e-6 < apart < 0.1
        assert abs(float(row[5]) - theirs.log_prob_of(5)[0]) < 0.05
    narrow.close()
    with pytest.raises(UnsupportedError, match="dtype 'int8'; known are float32, bfloat16"):
        TransformersEngine(reference_folder, dtype="int8")
    quantized = TransformersEngine(artifacts["FP8_DYNAMIC"], dtype="bfloat16")
    assert quantized.info.dtype == "float32"


def test_threads_are_given_back(reference_folder: Path, artifacts: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    for path in (reference_folder, artifacts["Q8_0"]):
        engine = open_engine(open_artifact(path), threads=1, batch=2)
        assert (engine.info.threads, engine.info.batch) == (1, 2)
        engine.close()
    assert torch.get_num_threads() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    reference_folder: Path, artifacts: dict[str, Path]
) -> None:
    folder, gguf = open_artifact(reference_folder), open_artifact(artifacts["Q8_0"])
    check_device("cpu", [folder, gguf])
    for artifact, said in (
        (folder, r"device 'cuda:1': torch .* cannot compute there"),
        (gguf, r"device 'cuda:1': llama-cpp-python .* was built without a GPU"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            check_device("cuda:1", [artifact])
        with pytest.raises(UnsupportedError, match=said):
            open_engine(artifact, device="cuda:1")
    with pytest.raises(UnsupportedError, match="device 'gpu': torch"):
        check_device("gpu", [folder])


def test_no_memory_for_a_text_is_no_fault_of_the_model(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ContextError, match="no memory for 2 rows of 9 tokens"), memory_for(9, 2):
        torch.empty(1 << 60)
    with pytest.raises(RuntimeError, match="shape"), memory_for(9, 2):
        torch.empty(3).view(2)
    engine = LlamaCppEngine(artifacts["Q8_0"], threads=1)
    monkeypatch.setattr(llama_cpp, "llama_init_from_model", lambda *_: None)
    with pytest.raises(ContextError, match="cannot make a context of 256 tokens"):
        engine.score([Passage((1, 2, 3), 1)], top=4)
    engine.close()
