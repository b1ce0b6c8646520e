"""Calibration: the text as the model's template has it, the sums, and what survives a stop."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from convert.conversation import Conversation, read_conversations
from convert.errors import ConversationError, InputError, OutputError
from convert.model import open_model
from convert.rendering import Tokenizer, render
from quantize.activations import run
from quantize.calibrate import calibrate
from quantize.calibration import read_calibration
from quantize.calibration_text import BUNDLED, cut, read_calibration_text
from quantize.importance import importance_for, read_importance
from quantize.job import quantize
from tests.command import invoke
from tests.families import write_family
from tests.miniature import TEMPLATE, change_json, write_checkpoint, write_tokenizer

NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"


def write_data(path: Path, *texts: str) -> Path:
    lines = [
        {"id": f"c{i}", "messages": [{"role": "user", "content": text}]}
        for i, text in enumerate(texts)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_every_rendering_has_the_one_bos_that_its_template_writes(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")  # its post-processor would add a second one
    data = write_data(tmp_path / "d.jsonl", "first", "second", "third")
    tokenizer = Tokenizer.open(model)
    conversations = read_conversations(data)
    rendered = [render(tokenizer, c, add_generation_prompt=False) for c in conversations]
    tokenizer.close()
    length = sum(map(len, rendered))
    (chunk,) = read_calibration_text(model, data, length).chunks
    assert chunk == tuple(token for ids in rendered for token in ids)
    assert chunk.count(257) == 3
    assert chunk[0] == 257
    assert chunk[1] == 259  # <|im_start|>, one token: special tokens are parsed


def test_each_chunk_begins_with_bos_only_if_the_template_writes_it(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    data = write_data(tmp_path / "d.jsonl", "x" * 100)
    with_bos = read_calibration_text(model, data, 16)
    assert {chunk[0] for chunk in with_bos.chunks} == {257}
    template = TEMPLATE.replace("{{ bos_token }}", "")
    change_json(model / "tokenizer_config.json", chat_template=template)
    without = read_calibration_text(model, data, 16)
    assert [chunk.count(257) for chunk in without.chunks] == [0] * len(without.chunks)


def test_what_does_not_fill_a_chunk_is_dropped_as_llama_imatrix_does() -> None:
    assert cut(list(range(10)), 4, None) == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert cut(list(range(8)), 4, 99) == ((99, 1, 2, 3), (99, 5, 6, 7))
    assert cut([1, 2], 4, None) == ()


def test_text_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    short = write_data(tmp_path / "short.jsonl", "a")
    with pytest.raises(InputError, match="tokens do not fill one chunk of 512"):
        read_calibration_text(model, short)
    inside = write_data(tmp_path / "inside.jsonl", "before <|begin_of_text|> after")
    with pytest.raises(ConversationError, match=r"'c0' holds the BOS token \(257\) after its"):
        read_calibration_text(model, inside, 8)


def word_runs(conversation: Conversation, length: int = 8) -> set[tuple[str, ...]]:
    texts = [str(message.get("content") or "") for message in conversation.messages]
    found = set()
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        found |= {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}
        found |= {tuple(words)} if len(words) > 2 else set()
    return found


def test_the_bundled_conversations_are_in_no_set_that_measures() -> None:
    bundled = set().union(*map(word_runs, read_conversations(BUNDLED)))
    for path in (NANO / "prompts").glob("*.jsonl"):
        for conversation in read_conversations(path):
            shared = word_runs(conversation) & bundled
            assert not shared, (path.name, conversation.id, shared)


def test_the_bundled_conversations_hold_what_hermes_models_are_asked() -> None:
    conversations = read_conversations(BUNDLED)
    tags = [tag for conversation in conversations for tag in conversation.tags]
    assert {tag: tags.count(tag) >= 4 for tag in tags} == dict.fromkeys(
        ("chat", "code", "tools", "json", "language", "reasoning"), True
    )
    assert 60 <= len(conversations) <= 100
    for conversation in conversations:
        names = {tool["function"]["name"] for tool in conversation.tools}
        for message in conversation.messages:
            assert {c["function"]["name"] for c in message.get("tool_calls", [])} <= names
    assert read_calibration_text(NANO).tokens > 10_000


def test_sums_and_maxima_are_those_of_hooks_on_the_whole_model(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", *("the weather in a far town " * 4).split())
    made = calibrate(str(NANO), tmp_path / "cal", data, chunk_tokens=32)
    means = read_importance(made.imatrix).means
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    ids = torch.tensor(read_calibration_text(NANO, data, 32).chunks)
    wanted: dict[str, torch.Tensor] = {}
    for name, module in model.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda module, x, name=name: wanted.update({name: x[0].flatten(0, 1)})
            )
    with torch.inference_mode():
        model(input_ids=ids)
    with open_model(str(NANO)) as opened:
        for tensor in opened.tensors:
            module = tensor.info.name.removesuffix(".weight")
            x = wanted.get(module.removeprefix("model."))
            if x is not None:
                mean = x.double().square().mean(0).numpy()
                np.testing.assert_allclose(means[tensor.gguf_name][0], mean, rtol=1e-4)
                assert made.inputs[module] == pytest.approx(x.abs().max().item(), rel=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "seed_oss"])
def test_every_matrix_has_its_importance(kind: str, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    model = write_family(tmp_path / kind, kind, vocabulary, vocab_size=320)
    data = write_data(tmp_path / "d.jsonl", *["words to route " * 5] * 5)
    made = calibrate(str(model), tmp_path / "cal", data, chunk_tokens=64)
    with open_model(str(model)) as opened:
        outputs = opened.gguf_outputs()
        found = importance_for(read_importance(made.imatrix), outputs)
    matrices = {o.tensor.name for o in outputs if o.is_matrix and o.layer is not None}
    assert found.keys() == {name for name in matrices if "ffn_gate_inp" not in name}


class StopError(Exception):
    """Something kills the run."""


def test_a_stopped_run_goes_on_with_the_next_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "m")
    data = write_data(tmp_path / "d.jsonl", "some words " * 20)
    whole = calibrate(str(model), tmp_path / "whole", data, chunk_tokens=32)
    through, layers = run._through, []

    def dies_in_layer_1(*arguments: object) -> torch.Tensor:
        layers.append(arguments[2].layer)  # type: ignore[attr-defined]
        if layers == [0, 0, 1]:
            raise StopError
        return through(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "_through", dies_in_layer_1)
    monkeypatch.setattr("quantize.calibrate.CHUNKS_AT_ONCE", 4)
    with pytest.raises(StopError):
        calibrate(str(model), tmp_path / "cal", data, chunk_tokens=32)
    assert not (tmp_path / "cal" / "calibration.json").exists()
    again = calibrate(str(model), tmp_path / "cal", data, chunk_tokens=32)
    assert layers == [0, 0, 1, 1, 1]
    assert again.record["files"] == whole.record["files"]
    assert sorted(p.name for p in again.folder.iterdir()) == sorted(
        ["activations.json", "calibration.json", "imatrix.gguf", "tokens.npy"]
    )


def test_progress_of_another_text_is_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_checkpoint(tmp_path / "m")
    one = write_data(tmp_path / "one.jsonl", "some words " * 20)
    two = write_data(tmp_path / "two.jsonl", "other text " * 20)
    wanted = calibrate(str(model), tmp_path / "wanted", two, chunk_tokens=32)

    def stop(*arguments: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr("quantize.calibrate._write", stop)
        with pytest.raises(StopError):
            calibrate(str(model), tmp_path / "cal", one, chunk_tokens=32)
    assert (tmp_path / "cal" / ".hermes-quant-staging" / "progress.npz").exists()
    found = calibrate(str(model), tmp_path / "cal", two, chunk_tokens=32)
    assert found.record["files"] == wanted.record["files"]


def test_a_finished_calibration_is_kept_and_another_is_not_overwritten(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    data = write_data(tmp_path / "d.jsonl", "some words " * 20)
    first = calibrate(str(model), tmp_path / "cal", data, chunk_tokens=32)
    stamp = first.imatrix.stat().st_mtime_ns
    calibrate(str(model), tmp_path / "cal", data, chunk_tokens=32)
    assert first.imatrix.stat().st_mtime_ns == stamp
    with pytest.raises(OutputError, match="holds a calibration of another model, text or setting"):
        calibrate(str(model), tmp_path / "cal", data, chunk_tokens=16)
    second = calibrate(str(model), tmp_path / "cal", data, chunk_tokens=16, force=True)
    assert second.record["data"]["chunk_tokens"] == 16
    with pytest.raises(OutputError, match="has files already"):
        calibrate(str(model), model, data, chunk_tokens=32)
    change_json(second.folder / "calibration.json", model={})
    with pytest.raises(InputError, match="not a complete calibration: KeyError"):
        read_calibration(second.folder)


def test_its_imatrix_serves_the_gguf_types_without_being_named(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", *("the weather in a far town " * 4).split())
    made = calibrate(str(NANO), tmp_path / "cal", data, chunk_tokens=32)
    quantize(str(NANO), tmp_path / "a", ["IQ2_S"], calibration=made.folder, name="m")
    copied = tmp_path / "copied.gguf"
    shutil.copyfile(made.imatrix, copied)
    quantize(str(NANO), tmp_path / "b", ["IQ2_S"], imatrix=copied, name="m")
    a, b = (tmp_path / folder / "m-IQ2_S.gguf" for folder in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_the_command_says_what_was_run_and_where_it_is(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d.jsonl", "some words " * 20)
    model = write_checkpoint(tmp_path / "m")
    words = ["calibrate", model, "--out", tmp_path / "cal", "--data", data]
    done = invoke(*words, "--chunk-tokens", "32")
    assert done.exit_code == 0
    assert "d.jsonl: 1 conversations, 224 tokens in 7 chunks of 32" in done.stdout
    again = invoke(*words, "--chunk-tokens", "32", "--json")
    record = json.loads(again.stdout)
    assert record["data"]["tokens"] == 224
    assert record["files"].keys() == {"imatrix.gguf", "activations.json", "tokens.npy"}
    assert str(tmp_path) not in (tmp_path / "cal" / "calibration.json").read_text()
    other = invoke(*words, "--chunk-tokens", "16")
    assert other.exit_code == 2
    assert "pass --force" in other.stderr
