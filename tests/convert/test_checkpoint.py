"""Bad input: one line that names the file or tensor, what was found and what was expected."""

from __future__ import annotations

import errno
import json
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.blocks import row_blocks
from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, InputError
from convert.model import open_model
from quantize.job import plan_folder, quantize
from tests.convert.refusal import TARGETS, refuse
from tests.miniature import Shape, change_json, write_checkpoint

SHAPE = Shape(layers=1)
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sharded checkpoint to be damaged."""
    return write_checkpoint(tmp_path / "source", shape=SHAPE, shards=2)


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


def test_a_folder_that_may_not_be_listed_is_one_line(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files can be opened by those who know their names."""

    def refuse_to_list(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refuse_to_list)
    refuse(source, "cannot be read: Permission denied")


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


def test_a_shard_that_would_be_copied_as_a_side_file(source: Path) -> None:
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    (source / FIRST).rename(source / "first.weights")
    renamed = {name: "first.weights" if s == FIRST else s for name, s in weight_map.items()}
    change_json(source / INDEX, weight_map=renamed)
    refuse(source, "first.weights", INDEX, "expected a .safetensors file")


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


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.00.mlp.up_proj.weight",
        "model.layers.1e0.x",
        f"model.layers.{'9' * 5000}.mlp.up_proj.weight",
    ],
)
def test_a_layer_number_that_is_none(tmp_path: Path, name: str) -> None:
    edit = {name: torch.zeros(512, 256, dtype=torch.bfloat16)}
    refuse(write_checkpoint(tmp_path / "s", shape=SHAPE, edit=edit), name, "no tensor of this name")


def test_rows_without_a_value_are_one_block(tmp_path: Path) -> None:
    rows = 1 << 50  # one after the other they would take years
    edit = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(rows, 0)}
    source = Checkpoint.open(write_checkpoint(tmp_path / "s", shape=SHAPE, edit=edit))
    info = source.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert list(islice(row_blocks(info, rows, 1, 100), 2)) == [(0, rows)]
    quantize(str(source.path), tmp_path, ["FP8_DYNAMIC"], name="m")
    made = Checkpoint.open(tmp_path / "m-FP8_DYNAMIC")
    assert made.tensors[info.name].shape == (rows, 0)


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
    for name in (*extra, "LICENSE", "hermes-quant.json", "release.yaml"):
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


def test_a_large_side_file_takes_no_memory_and_one_that_cannot_be_read_is_named(
    source: Path,
) -> None:
    with (source / "notes.npz").open("wb") as stream:
        stream.truncate(1 << 26)
    with open_model(str(source)) as model:
        planned = plan_folder(model, "FP8_DYNAMIC", "ct-eager")
        tracemalloc.start()
        first = planned.fingerprint(model.checkpoint, "tool")
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
        tracemalloc.stop()
        with (source / "notes.npz").open("r+b") as stream:
            stream.seek(1 << 25)
            stream.write(b"1")
        assert planned.fingerprint(model.checkpoint, "tool") != first
        (source / "notes.npz").unlink()
        with pytest.raises(CheckpointError, match=r"notes\.npz: cannot be read"):
            planned.fingerprint(model.checkpoint, "tool")


def test_rows_can_be_read_alone(miniature: Path) -> None:
    with Checkpoint.open(miniature) as checkpoint:
        info = checkpoint.tensors[GATE]
        whole = checkpoint.read_tensor(GATE)
        some = checkpoint.read_rows(info, 7, 12)
        assert (some.first_row, some.raw.shape) == (7, (5, 256))
        assert (some.raw == whole[7:12]).all()
        with pytest.raises(CheckpointError, match=rf"ends at byte .* inside '{GATE}'"):
            checkpoint.read_rows(info, 10**7, 10**7 + 1)


def test_a_single_file_beside_shards_is_stale(source: Path) -> None:
    shard = next(source.glob("model-*.safetensors"))
    (source / "model.safetensors").write_bytes(shard.read_bytes())
    refuse(source, "model.safetensors, which is there too", "Remove what is stale")
