"""Bad input: one line that names the file or tensor, what was found and what was expected."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, HermesQuantError, InputError
from convert.inspection import inspect
from quantize.job import quantize
from tests.miniature import Shape, change_json, write_checkpoint

SHAPE = Shape(layers=1)
TARGETS = ["BF16", "Q4_K_M", "FP8_DYNAMIC"]
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sharded checkpoint to be damaged."""
    return write_checkpoint(tmp_path / "source", shape=SHAPE, shards=2)


def refuse(source: str | Path, *found: str) -> None:
    """Quantizing `source` must fail with one line that says all of `found`, and leave nothing."""
    out = Path(source).parent / "out"
    with pytest.raises(InputError) as raised:
        quantize(str(source), out, TARGETS)
    message = str(raised.value)
    assert "\n" not in message
    for part in found:
        assert part in message, message
    assert not out.exists() or not any(out.iterdir())


def edit_tensors(shard: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)


def test_nothing_there(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "none", "no such folder", "owner/name")
    refuse("", "no such folder")
    refuse("x" * 5000, "no such folder")
    refuse("a\0b", "no such folder")


def test_a_file_is_not_a_checkpoint(source: Path) -> None:
    refuse(source / FIRST, FIRST, "not a folder", "expected a Hugging Face checkpoint")


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
        ({"intermediate_size": 256}, ("[512, 256]", "for [256, 256]", "intermediate x hidden")),
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
    refuse(source, "README.md: the front matter is not valid YAML")


def test_a_card_that_says_nothing_of_use(source: Path) -> None:
    text = "---\nmodel-index: 5\ntags: {a: b}\nlicense: [x]\nmodel_name: 2024-01-01\n---\n"
    (source / "README.md").write_text(text)
    assert quantize(str(source), source / "out", TARGETS, dry_run=True).name == "source"


def test_no_weights(source: Path) -> None:
    for path in source.glob("model*"):
        path.unlink()
    refuse(source, "no model.safetensors and no model.safetensors.index.json")


def test_pickled_weights_are_never_loaded(source: Path) -> None:
    for path in source.glob("model*"):
        path.unlink()

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (source / "ran",)

    (source / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refuse(source, "only pickled weights (pytorch_model.bin)", "never loaded", "Convert them")
    assert not (source / "ran").exists()


def test_two_shards_without_an_index(source: Path) -> None:
    (source / INDEX).unlink()
    refuse(source, "2 safetensors files and no model.safetensors.index.json")


def test_a_missing_shard(source: Path) -> None:
    (source / SECOND).unlink()
    refuse(source, SECOND, "missing", INDEX, "needs it for 'model.layers.0.self_attn.q_proj.")


def test_an_index_that_names_a_missing_file(source: Path) -> None:
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    for shard in ("model-00003-of-00002.safetensors", "x" * 300, "a\0b"):
        change_json(source / INDEX, weight_map={**weight_map, GATE: shard})
        refuse(source, "missing", f"needs it for '{GATE}'")


@pytest.mark.parametrize("shard", ["../source/config.json", "/etc/passwd", "", "..", 7, None])
def test_an_index_that_leads_out_of_the_folder(source: Path, shard: object) -> None:
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    change_json(source / INDEX, weight_map={**weight_map, GATE: shard})
    refuse(source, INDEX, f"'{GATE}' is said to be in {shard!r}, not a file name")


@pytest.mark.parametrize("weight_map", [None, {}, [1]])
def test_an_index_without_a_map(source: Path, weight_map: object) -> None:
    change_json(source / INDEX, weight_map=weight_map)
    refuse(source, INDEX, "weight_map is missing or empty")


def test_an_index_and_headers_that_disagree(source: Path) -> None:
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    place = weight_map[GATE]
    other = SECOND if place == FIRST else FIRST
    change_json(source / INDEX, weight_map={**weight_map, GATE: other})
    refuse(source, INDEX, f"'{GATE}' is said to be in {other}, it is in {place}")
    change_json(source / INDEX, weight_map={n: s for n, s in weight_map.items() if n != GATE})
    refuse(source, place, f"holds '{GATE}', which {INDEX} omits")
    change_json(source / INDEX, weight_map={**weight_map, "model.extra": FIRST})
    refuse(source, FIRST, f"lacks 'model.extra', which {INDEX} promises")


def test_a_tensor_in_two_shards(source: Path) -> None:
    weight = load_file(source / FIRST)["model.embed_tokens.weight"]
    edit_tensors(source / SECOND, lambda t: t.update({"model.embed_tokens.weight": weight}))
    refuse(source, f"'model.embed_tokens.weight' is in {FIRST} and in {SECOND}")


@pytest.mark.parametrize("kept", [0, 7, 100, -1, -5000])
def test_a_truncated_shard(source: Path, kept: int) -> None:
    data = (source / FIRST).read_bytes()
    (source / FIRST).write_bytes(data[:kept])
    refuse(source, FIRST, "truncated", "download it again")


def test_a_shard_that_is_a_git_lfs_pointer(source: Path) -> None:
    (source / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refuse(source, FIRST, "not a safetensors file")


def test_a_tensor_of_an_unknown_name(source: Path) -> None:
    name = "model.layers.0.mlp.router\n\x1b[31m.weight"
    edit_tensors(source / FIRST, lambda t: t.update({name: torch.zeros(1)}))
    index = json.loads((source / INDEX).read_text())["weight_map"]
    change_json(source / INDEX, weight_map={**index, name: FIRST})
    with pytest.raises(InputError, match="no tensor of this name is known in the llama family"):
        quantize(str(source), source.parent / "out", TARGETS)


@pytest.mark.parametrize("name", ["model.layers.00.mlp.up_proj.weight", "model.layers.1e0.x"])
def test_a_layer_number_that_is_none(tmp_path: Path, name: str) -> None:
    edit = {name: torch.zeros(512, 256, dtype=torch.bfloat16)}
    refuse(write_checkpoint(tmp_path / "s", shape=SHAPE, edit=edit), name, "no tensor of this name")


def test_a_layer_too_many(tmp_path: Path) -> None:
    edit = {"model.layers.1.mlp.up_proj.weight": torch.zeros(512, 256, dtype=torch.bfloat16)}
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, edit=edit)
    refuse(source, "model.layers.1.mlp.up_proj.weight", "has only 1 layers")


@pytest.mark.parametrize("name", [GATE, "lm_head.weight", "model.norm.weight"])
def test_a_tensor_that_is_missing(tmp_path: Path, name: str) -> None:
    source = write_checkpoint(tmp_path / "s", shape=SHAPE)
    edit_tensors(source / "model.safetensors", lambda tensors: tensors.pop(name))
    refuse(source, name, "missing", "untied embeddings")


def test_a_tensor_of_the_wrong_shape(tmp_path: Path) -> None:
    edit = {GATE: torch.zeros(256, 512, dtype=torch.bfloat16)}
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, edit=edit)
    refuse(source, GATE, "[256, 512] in model.safetensors", "asks for [512, 256]")


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "F64"), (torch.int8, "I8")])
def test_a_tensor_of_the_wrong_dtype(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    edit = {GATE: torch.zeros(512, 256, dtype=dtype)}
    source = write_checkpoint(tmp_path / "s", shape=SHAPE, edit=edit)
    refuse(source, GATE, f"dtype {name} in model.safetensors", "expected one of BF16, F16, F32")


def test_a_quantized_checkpoint_is_no_source(tmp_path: Path, miniature: Path) -> None:
    quantize(str(miniature), tmp_path / "first", ["FP8_DYNAMIC"], name="m")
    refuse(tmp_path / "first" / "m-FP8_DYNAMIC", "already quantized (compressed-tensors)")


def test_a_name_that_cannot_be_a_file(tmp_path: Path, miniature: Path) -> None:
    for name in ("///", "..", "x" * 300):
        with pytest.raises(InputError, match="pass --name"):
            quantize(str(miniature), tmp_path / "out", ["BF16"], name=name)


def test_side_files_leave_out_weights_code_and_our_own_sidecars(source: Path) -> None:
    extra = ("a.bin", "b.pth", "c.gguf", "evil.py", ".hidden", "x-Q8_0.gguf.hermes-quant.json")
    for name in (*extra, "LICENSE", "hermes-quant.json"):
        (source / name).write_text("x")
    kept = Checkpoint.open(source).side_files()
    assert set(kept) == {
        "LICENSE",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    change_json(source / "config.json", auto_map={"AutoModel": "evil.X"})
    assert "evil.py" in Checkpoint.open(source).side_files()


json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 600),
        st.sampled_from([2**31, 2**63, -(2**70), 10**400, 1e308, -1e-308, 1e-30]),
        st.floats(allow_nan=True),
        st.text(max_size=5),
        st.sampled_from(["llama3", "default", "LlamaForCausalLM", "\ud800", "\x00"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FUZZED = ("config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json")


def places(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Paths to some of the values inside a JSON document, first entries of long lists only."""
    inner: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())[:25]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:4]
    return [at, *(place for key, entry in inner for place in places(entry, (*at, key)))]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), file=st.sampled_from(FUZZED), value=json_values)
def test_no_json_file_can_cause_an_error_of_another_kind(
    miniature: Path,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    file: str,
    value: object,
) -> None:
    source = tmp_path_factory.getbasetemp() / "fuzzed"
    if not source.exists():
        shutil.copytree(miniature, source)
    original = (miniature / file).read_text()
    content = json.loads(original)
    *parents, last = ("", *data.draw(st.sampled_from(places(content)[1:])))
    inside: Any = content
    for key in parents[1:]:
        inside = inside[key]
    inside[last] = value
    (source / file).write_text(json.dumps(content))
    try:
        quantize(str(source), source.parent / "out", TARGETS, dry_run=True)
        inspect(str(source))
    except HermesQuantError:
        pass
    finally:
        (source / file).write_text(original)


def test_rows_can_be_read_alone(miniature: Path) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        info = checkpoint.tensors[GATE]
        whole = checkpoint.read_tensor(GATE)
        some = checkpoint.read_rows(info, 7, 12)
        assert (some.first_row, some.raw.shape) == (7, (5, 256))
        assert (some.raw == whole[7:12]).all()
        with pytest.raises(CheckpointError, match=rf"ends at byte .* inside '{GATE}'"):
            checkpoint.read_rows(info, 10**7, 10**7 + 1)
