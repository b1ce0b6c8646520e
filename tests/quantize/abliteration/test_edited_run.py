"""An edit inside a run: every target is what would be made from the edited checkpoint on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file as load
from safetensors.torch import load_file

from convert.checkpoint import Checkpoint
from convert.edited import READS
from convert.errors import InputError, TensorError, UnsupportedError
from quantize.abliteration.edit_folder import RECIPE_NAME, read_edit
from quantize.job import quantize
from tests.command import invoke
from tests.families import write_family
from tests.miniature import Shape, write_checkpoint, write_tokenizer
from tests.quantize.abliteration.edits import random_edit, writers

TARGETS = ["SAFETENSORS", "FP8_DYNAMIC", "FP8_TENSOR", "NVFP4A16", "Q8_0", "Q4_K_M", "BF16"]
FOLDERS = ["FP8_DYNAMIC", "FP8_TENSOR", "NVFP4A16"]


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_edit(tmp_path_factory.mktemp("edit"), writers(2))


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("hermes-quant.json")
    }


def test_every_quant_equals_the_one_made_from_the_edited_checkpoint(
    miniature: Path, edit: Path, tmp_path: Path
) -> None:
    quantize(str(miniature), tmp_path / "a", TARGETS, abliterate=edit, name="m")
    edited = tmp_path / "a" / "m-SAFETENSORS"
    quantize(str(edited), tmp_path / "b", TARGETS[1:], name="m")
    quantize(str(miniature), tmp_path / "c", TARGETS[1:], name="m")
    from_edited, from_disk, plain = (contents(tmp_path / place) for place in "abc")
    assert from_disk, "something was compared"
    for name, digest in from_disk.items():
        assert from_edited[name] == digest, name
    for target in ("Q8_0", "Q4_K_M", "BF16"):
        assert plain[f"m-{target}.gguf"] != from_disk[f"m-{target}.gguf"]


def test_the_edited_checkpoint_differs_in_the_edited_tensors_and_nowhere_else(
    miniature: Path, edit: Path, tmp_path: Path
) -> None:
    (job,) = quantize(str(miniature), tmp_path, ["SAFETENSORS"], abliterate=edit).results
    folder = tmp_path / "miniature-abliterated-SAFETENSORS"
    ours, theirs = contents(miniature), contents(folder)
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n] != theirs[n]} == {n for n in ours if n.startswith("model-")}
    for shard in miniature.glob("model-*.safetensors"):
        a, b = load_file(shard), load_file(folder / shard.name)
        with shard.open("rb") as one, (folder / shard.name).open("rb") as other:
            header = 8 + int.from_bytes(one.read(8), "little")
            one.seek(0)
            assert one.read(header) == other.read(header)
        for name in a:
            assert a[name].equal(b[name]) == (name not in writers(2)), name
    records = job.artifact.recipe["edited_tensors"]
    assert sorted(records) == sorted(writers(2))
    assert not set(records) & set(job.artifact.recipe["untouched_tensors"])
    with Checkpoint.open(miniature) as before, Checkpoint.open(folder) as after:
        assert len(before.tensors) == len(records) + len(job.artifact.recipe["untouched_tensors"])
        for name, record in records.items():
            for checkpoint, key in ((before, "sha256_before"), (after, "sha256_after")):
                raw = np.ascontiguousarray(checkpoint.read_tensor(name)).tobytes()
                assert hashlib.sha256(raw).hexdigest() == record[key], name
            assert record["left_along_direction"] < 5e-3


@pytest.mark.parametrize(("memory", "threads"), [(1 << 30, 1), (16 << 20, 3)])
def test_bytes_depend_on_neither_memory_nor_threads(
    miniature: Path, edit: Path, tmp_path: Path, memory: int, threads: int
) -> None:
    how = {"memory_bytes": memory, "threads": threads}
    quantize(str(miniature), tmp_path / "a", ["SAFETENSORS", "Q8_0"], abliterate=edit, name="m")
    quantize(
        str(miniature), tmp_path / "b", ["SAFETENSORS", "Q8_0"], abliterate=edit, name="m", **how
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_layer_1_is_not_layers_10_to_19(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", shape=Shape(256, 256, layers=12))
    names = [name for name in writers(12) if ".layers.1." in name]
    edit = random_edit(tmp_path / "edit", names)
    quantize(str(source), tmp_path / "out", ["SAFETENSORS"], abliterate=edit, name="e")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out" / "e-SAFETENSORS" / "model.safetensors")
    assert sorted(n for n in before if not before[n].equal(after[n])) == sorted(names)


def test_an_output_of_another_edit_is_not_taken_for_this_one(
    miniature: Path, edit: Path, tmp_path: Path
) -> None:
    arguments = (str(miniature), tmp_path / "out", ["Q8_0"])
    quantize(*arguments, abliterate=edit, name="m")
    assert quantize(*arguments, abliterate=edit, name="m").results[0].kept
    other = random_edit(tmp_path / "other", writers(2), strength=0.5)
    for changed in (other, None):
        with pytest.raises(InputError, match="was not made from this source"):
            quantize(*arguments, abliterate=changed, name="m")


def test_the_reads_of_the_edit_are_in_the_plan(miniature: Path, edit: Path, tmp_path: Path) -> None:
    plain = quantize(str(miniature), tmp_path, ["BF16"], dry_run=True).plan.read_bytes
    planned = quantize(str(miniature), tmp_path, ["BF16"], abliterate=edit, dry_run=True).plan
    assert planned.read_bytes - plain == READS * 2 * 2 * 256 * (256 + 512)


def test_an_unedited_checkpoint_is_not_copied(miniature: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--abliterate"):
        quantize(str(miniature), tmp_path, ["SAFETENSORS"])


def test_what_cannot_be_edited_is_refused_in_one_line(
    miniature: Path, edit: Path, tmp_path: Path
) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    experts = write_family(tmp_path / "experts", "mixtral", vocabulary, vocab_size=320)
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        quantize(str(experts), tmp_path, ["BF16"], abliterate=edit)
    quantize(str(miniature), tmp_path, ["FP8_DYNAMIC"], name="m")
    found = invoke(
        "quantize",
        tmp_path / "m-FP8_DYNAMIC",
        "--out",
        tmp_path,
        "--to",
        "SAFETENSORS",
        "--abliterate",
        edit,
    )
    assert found.exit_code == 2
    assert "already quantized" in found.output
    assert found.output.strip().count("\n") == 0
    other = write_checkpoint(tmp_path / "wide", shape=Shape(hidden=512))
    with pytest.raises(TensorError, match="of another model"):
        quantize(str(other), tmp_path, ["BF16"], abliterate=edit)
    for bad, why in (
        ("model.layers.0.mlp.up_proj.weight", "does not write"),
        ("model.layers.9.mlp.down_proj.weight", "not in the checkpoint"),
    ):
        wrong = random_edit(tmp_path / "wrong", [bad])
        with pytest.raises(TensorError, match=why):
            quantize(str(miniature), tmp_path, ["BF16"], abliterate=wrong)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"strength": 1}, "strength"),
        ({"edits": []}, "edits"),
        ({"edits": [{"tensor": "t", "direction": "gone", "strength": 1}]}, "'gone' is not in"),
        ({"edits": [{"tensor": "t", "direction": "d0", "strength": 1}] * 2}, "edited twice"),
        ({"schema_version": 2}, "schema_version"),
        ({"provenance": {"score": float("nan")}}, "not JSON compliant"),
        ({"provenance": {"source": "acme/Mini"}}, r"provenance\.source: Input should be an object"),
        (
            {"provenance": {"candidate": {"id": "x", "bypass": 1.0}}},
            r"provenance\.baseline: Field required",
        ),
    ],
)
def test_a_recipe_that_does_not_add_up_is_refused(
    edit: Path, tmp_path: Path, change: dict[str, object], why: str
) -> None:
    folder = random_edit(tmp_path / "e", writers(2))
    recipe = json.loads((folder / RECIPE_NAME).read_text())
    (folder / RECIPE_NAME).write_text(json.dumps(recipe | change))
    with pytest.raises(InputError, match=why):
        read_edit(folder)


def test_a_direction_is_a_unit_vector(tmp_path: Path) -> None:
    from quantize.abliteration.edit_folder import DIRECTIONS_NAME, write_vectors

    folder = random_edit(tmp_path / "e", writers(1))
    directions = load(folder / DIRECTIONS_NAME)
    write_vectors(folder / DIRECTIONS_NAME, {n: 2 * v for n, v in directions.items()})
    with pytest.raises(InputError, match="norm 2"):
        read_edit(folder)
