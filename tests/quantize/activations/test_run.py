"""The model run layer by layer is the whole model, for every family, whatever is in the batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from convert.errors import CheckpointError, InputError, TensorError, UnsupportedError
from quantize.activations import Batch, Observer, Start, padded_batches, run_layers
from tests.families import CONFIGS, write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer

NANO = Path(__file__).parents[3] / "examples" / "hermes-nano"


def prompts(vocabulary: int, lengths: tuple[int, ...] = (5, 17, 9, 30)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def whole_model(folder: Path) -> transformers.PreTrainedModel:
    """transformers' own model in float32."""
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_small_family(folder: Path, kind: str, **changes: object) -> Path:
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir(parents=True)
    write_tokenizer(vocabulary)
    return write_family(folder / kind, kind, vocabulary, vocab_size=320, shards=2, **changes)


def assert_same_logits(folder: Path, batches: list[Batch]) -> None:
    final, model = run_layers(folder, batches), whole_model(folder)
    for index, batch in enumerate(batches):
        places = batch.mask.nonzero().tolist()
        got = final.logits([(index, row, token) for row, token in places])
        with torch.inference_mode():
            wanted = model(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
        torch.testing.assert_close(got, wanted[batch.mask], rtol=1e-5, atol=1e-5)


TELLS_WHEN_TORCH_LOADS = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
sys.meta_path.insert(0, Finder())
import quantize.activations
"""


def test_openmp_is_told_to_sleep_before_torch_is_loaded() -> None:
    stated = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    words = [sys.executable, "-c", TELLS_WHEN_TORCH_LOADS]
    done = subprocess.run(words, env=stated, capture_output=True, text=True, check=True)
    assert done.stdout == "PASSIVE\n"


def test_logits_of_the_trained_model_are_those_of_the_whole_model() -> None:
    assert_same_logits(NANO, padded_batches(prompts(2000), 3))


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_of_every_family_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    folder = write_small_family(tmp_path, kind)
    assert_same_logits(folder, padded_batches(prompts(320), 3))


def test_a_sliding_window_hides_what_it_hides_in_the_whole_model(tmp_path: Path) -> None:
    folder = write_small_family(tmp_path, "mistral", sliding_window=4)
    assert_same_logits(folder, padded_batches(prompts(320), 3))


def test_padding_changes_no_real_token() -> None:
    alone = run_layers(NANO, padded_batches(prompts(2000), 1))
    padded = run_layers(NANO, padded_batches(prompts(2000), 4))
    for row, states in enumerate(alone.hidden):
        length = states.shape[1]
        torch.testing.assert_close(states[0], padded.hidden[0][row, :length], rtol=1e-4, atol=1e-4)


class Inputs(Observer):
    """Keeps what enters each matrix, and what a cache would hold."""

    def __init__(self) -> None:
        self.linear: dict[str, Tensor] = {}
        self.cached: dict[int, tuple[Tensor, Tensor]] = {}

    def linear_input(self, layer: int, name: str, batch: int, x: Tensor, mask: Tensor) -> None:
        self.linear[f"model.layers.{layer}.{name}"] = x[mask].clone()

    def keys_values(self, layer: int, batch: int, keys: Tensor, values: Tensor) -> None:
        self.cached[layer] = keys.clone(), values.clone()


def test_observers_see_what_hooks_on_the_whole_model_see() -> None:
    seen, model = Inputs(), whole_model(NANO)
    (batch,) = padded_batches(prompts(2000), 4)
    run_layers(NANO, [batch], [seen])
    wanted: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(
                lambda module, x, name=name: wanted.update({name: x[0][batch.mask]})
            )
    with torch.inference_mode():
        result = model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=True)
    assert seen.linear.keys() == wanted.keys()
    for name, x in wanted.items():
        torch.testing.assert_close(seen.linear[name], x, rtol=1e-5, atol=1e-5)
    for layer, (keys, values) in seen.cached.items():
        torch.testing.assert_close(keys, result.past_key_values.layers[layer].keys)
        torch.testing.assert_close(values, result.past_key_values.layers[layer].values)


def test_an_expert_is_shown_the_real_tokens_that_the_router_sent_it(tmp_path: Path) -> None:
    folder, seen = write_small_family(tmp_path, "mixtral"), Inputs()
    (batch,) = padded_batches(prompts(320), 4)
    run_layers(folder, [batch], [seen])
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(f"{name}.weight" in names for name in seen.linear)
    for layer in range(3):
        experts = f"model.layers.{layer}.block_sparse_moe.experts."
        sent = [len(x) for n, x in seen.linear.items() if n.startswith(experts) and "w1" in n]
        assert sum(sent) == 2 * int(batch.mask.sum())  # two experts a token


def test_what_an_observer_puts_in_place_of_a_layers_input_is_what_goes_on() -> None:
    class Wipe(Observer):
        def layer_input(self, layer: int, batch: int, hidden: Tensor) -> Tensor | None:
            return torch.zeros_like(hidden) if layer == 4 else None

    (batch,) = padded_batches(prompts(2000), 4)
    final = run_layers(NANO, [batch], [Wipe()])
    assert final.hidden[0].abs().max() == 0


def test_what_an_observer_puts_in_place_of_a_blocks_output_is_what_is_added() -> None:
    class Silence(Observer):
        def block_output(self, layer: int, name: str, batch: int, hidden: Tensor) -> Tensor | None:
            return torch.zeros_like(hidden)

    class Last(Observer):
        def layer_input(self, layer: int, batch: int, hidden: Tensor) -> None:
            self.hidden = hidden

    (batch,), last = padded_batches(prompts(2000), 4), Last()
    run_layers(NANO, [batch], [Silence(), last])
    embedding = whole_model(NANO).get_input_embeddings().weight
    torch.testing.assert_close(last.hidden, embedding[batch.ids], rtol=0, atol=0)


def test_a_run_that_goes_on_from_a_layer_ends_in_the_same_states() -> None:
    batches, kept = padded_batches(prompts(2000), 2), {}
    whole = run_layers(NANO, batches, after_layer=lambda start: kept.update({start.layer: start}))
    again = run_layers(NANO, batches, start=Start(3, kept[3].hidden))
    assert list(kept) == [1, 2, 3, 4, 5]
    for a, b in zip(whole.hidden, again.hidden, strict=True):
        assert torch.equal(a, b)


PEAK = """
import sys, torch
from pathlib import Path
from quantize.activations import padded_batches, run_layers
torch.set_num_threads(1)
ids = torch.arange(64).remainder(320).tolist()
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = anonymous()
peak = before
def look(*progress):
    global peak
    peak = max(peak, anonymous())
run_layers(Path(sys.argv[1]), padded_batches([ids], 1), on_progress=look)
print(peak - before)
"""


def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    used = {}
    for layers in (4, 32):
        shape = Shape(hidden=512, intermediate=1024, layers=layers)
        folder = write_checkpoint(tmp_path / str(layers), shape=shape)
        command = [sys.executable, "-c", PEAK, str(folder)]
        # a real layer's tensors are mapped and unmapped; without this, small ones fragment the heap
        room = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=room)
        used[layers] = int(done.stdout)
    layer_kib = 4 * (2 * 512 * 512 + 2 * 256 * 512 + 3 * 512 * 1024) // 1024
    assert used[32] - used[4] < layer_kib  # 28 more layers of weights would be 28


def test_a_checkpoint_that_lacks_what_its_config_asks_for_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    with pytest.raises(CheckpointError, match=r"layer 0 .*q_proj\.bias"):
        run_layers(folder, padded_batches([[1, 2]], 1))


def test_what_cannot_be_run_says_so() -> None:
    with pytest.raises(UnsupportedError, match="unknown dtype 'int8'"):
        run_layers(NANO, padded_batches([[1]], 1), dtype="int8")
    with pytest.raises(UnsupportedError, match="device 'nonsense' cannot be used"):
        run_layers(NANO, padded_batches([[1]], 1), device="nonsense")
    with pytest.raises(CheckpointError, match="no row for token 99999"):
        run_layers(NANO, padded_batches([[99999]], 1))
    with pytest.raises(InputError, match="prompt 1 has no tokens"):
        padded_batches([[1], []], 2)


def test_an_overflow_is_an_error_and_not_a_result(tmp_path: Path) -> None:
    huge = torch.full((256, 512), 1e4).to(torch.bfloat16)
    edit = {
        "model.layers.1.mlp.down_proj.weight": huge,
        "model.layers.1.mlp.up_proj.weight": huge.T.contiguous(),
    }
    folder = write_checkpoint(tmp_path / "m", edit=edit)
    with pytest.raises(TensorError, match="layer 1: its output is not finite"):
        run_layers(folder, padded_batches([[1, 2, 3]], 1), dtype="float16")
