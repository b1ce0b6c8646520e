"""Measuring and choosing on small models: prompts, positions, baseline, means, memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from convert.errors import ConversationError, InputError, OutputError
from convert.model import open_model
from convert.rendering import Tokenizer
from quantize.abliteration.apply import apply, parse_strengths
from quantize.abliteration.candidates import BY_LAYER, SINGLE, make_candidates
from quantize.abliteration.edit_folder import read_edit, write_edit
from quantize.abliteration.means import members_of
from quantize.abliteration.measure import measure
from quantize.abliteration.measurement import (
    COMPLIED,
    Baseline,
    Measurement,
    read_measurement,
    write_measurement,
)
from quantize.abliteration.prompts import (
    HARMLESS,
    PLAIN,
    REFUSED,
    TOOLS,
    Prompt,
    PromptSet,
    read_prompts,
)
from quantize.abliteration.selection import read_selection, select
from quantize.activations.residuals import projections, residual_sums
from quantize.activations.steering import NOTHING, Steering, steered_logits
from tests.command import invoke
from tests.miniature import TEMPLATE, Shape, change_json, write_checkpoint
from tests.quantize.abliteration.edits import random_edit, writers

NANO = Path(__file__).parents[3] / "examples" / "hermes-nano"


def write_prompts(path: Path, texts: list[str]) -> Path:
    rows = [
        {"id": f"{path.stem}-{i}", "messages": [{"role": "user", "content": text}]}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    refused = write_prompts(tmp_path / "refused.jsonl", [f"break {i}" for i in range(12)])
    return refused, write_prompts(tmp_path / "harmless.jsonl", [f"mend {i}" for i in range(12)])


def test_prompts_begin_with_one_bos_and_a_template_that_writes_two_is_refused(
    miniature: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    tokenizer = Tokenizer.open(miniature)
    found = read_prompts(tokenizer, *files)
    assert all(p.ids.count(257) == 1 and p.ids[0] == 257 for p in found.prompts)
    twice = write_checkpoint(tmp_path / "twice")
    change_json(twice / "tokenizer_config.json", chat_template="{{ bos_token }}" + TEMPLATE)
    with pytest.raises(ConversationError, match="two BOS"):
        read_prompts(Tokenizer.open(twice), *files)


def test_positions_are_the_ending_that_all_prompts_share(
    miniature: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([{"type": "function", "function": {"name": "f"}}]))
    found = read_prompts(Tokenizer.open(miniature), *files, tools)
    assert "".join(found.positions).startswith("<|im_end|>\n<|im_start|>")
    assert found.positions[-1] == "\n"
    assert {p.variant for p in found.prompts} == {PLAIN, TOOLS}
    plain, with_tools = (found.of(variant=v, kind=REFUSED) for v in (PLAIN, TOOLS))
    assert [p.id for p in plain] == [p.id for p in with_tools]
    assert all(a.ids != b.ids for a, b in zip(plain, with_tools, strict=True))
    assert sum(p.validation for p in plain) == 3


def test_a_model_that_does_not_refuse_ends_with_nothing_to_remove(
    miniature: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    arguments = ("--refused", files[0], "--harmless", files[1], "--out", tmp_path / "m")
    shown = invoke("abliterate", "measure", miniature, *arguments)
    assert shown.exit_code == 3
    assert "nothing to remove" in shown.output
    assert not (tmp_path / "m" / "measurement.safetensors").exists()
    again = measure(str(miniature), *files, tmp_path / "m")  # from what was kept
    assert again.nothing is not None
    with pytest.raises(InputError, match="baseline and no means"):
        select(str(miniature), tmp_path / "m")


def test_mistakes_in_what_is_given_are_named_before_the_model_runs(
    miniature: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(OutputError, match="taken: cannot be written to: File exists"):
        measure(str(miniature), *files, taken)
    with pytest.raises(OutputError, match="taken: cannot be written to: File exists"):
        write_edit(taken, read_edit(random_edit(tmp_path / "edit", writers(1))))
    tool = {"type": "function", "function": {"name": "f"}}
    rows = [{**json.loads(line), "tools": [tool]} for line in files[0].read_text().splitlines()]
    files[0].write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="every prompt brings tools"):
        measure(str(miniature), *files, tmp_path / "m")


@pytest.mark.parametrize(("layers", "hidden"), [(2, 8), (3, 256)])
def test_a_measurement_of_another_model_is_not_taken(
    miniature: Path, tmp_path: Path, layers: int, hidden: int
) -> None:
    write_measurement(tmp_path, measurement(layers, hidden=hidden))
    with pytest.raises(InputError, match=f"of {layers} layers and hidden size {hidden}; "):
        select(str(miniature), tmp_path)
    same = measurement(2, hidden=256)
    with open_model(str(miniature)) as opened:
        same.check_model(opened, tmp_path)


def test_sums_and_steering_are_those_of_transformers_with_hooks(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", dtype="F32", shape=Shape(layers=3))
    prompts = [[257, 5, 6, 7, 8], [257, 9, 10, 11, 12, 13, 8]]
    sums = residual_sums(folder, prompts, [0, 1], 2, 3)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    r = torch.nn.functional.normalize(
        torch.randn(256, generator=torch.Generator().manual_seed(1)), dim=0
    )
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            states = model.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            for layer in range(3):
                np.testing.assert_allclose(
                    sums.total[row, :, 2 * layer], states[layer][0, -2:], atol=1e-5
                )
        removed = {(1, "mlp"): (r.numpy(), 1.5), (2, "self_attn"): (r.numpy(), 1.5)}
        plain, steered = steered_logits(folder, [(prompts, NOTHING), (prompts, Steering(removed))])
        for layer, block in removed:
            module = model.model.layers[layer].get_submodule(
                "mlp.down_proj" if block == "mlp" else "self_attn.o_proj"
            )
            module.weight.copy_(module.weight - 1.5 * torch.outer(r, r @ module.weight))
        vectors = np.stack([r.numpy()] * 7)
        before, after = projections(
            folder, [(prompts, NOTHING), (prompts, Steering(removed))], vectors
        )
        np.testing.assert_allclose(before[:, 0], sums.total[[0, 1], -1, 0] @ r.numpy(), atol=1e-5)
        np.testing.assert_allclose(before[:, 4], sums.total[[0, 1], -1, 4] @ r.numpy(), atol=1e-5)
        for row, prompt in enumerate(prompts):
            edited = model.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            np.testing.assert_allclose(after[row, 4], edited[2][0, -1] @ r, atol=1e-4)
            wanted = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
            np.testing.assert_allclose(steered[row], wanted, atol=1e-4)
    assert np.abs(plain - steered).max() > 1e-3


def measurement(layers: int = 4, positions: int = 2, hidden: int = 8) -> Measurement:
    generator = np.random.default_rng(0)
    arrays = {}
    for kind in (REFUSED, HARMLESS):
        mean = generator.standard_normal((positions, 2 * layers + 1, hidden))
        mean[:, 0] = 1.0  # the same token everywhere: nothing differs before the first layer
        arrays[f"{PLAIN}.{kind}"] = mean
        arrays[f"{PLAIN}.{kind}.squares"] = np.square(mean).sum(-1) + 1
    prompts = PromptSet((), ("a",) * positions, {})
    return Measurement(
        {"model": "f"}, HARMLESS, layers, prompts, Baseline(9, 9, 9, 0, 9, (1,)), arrays
    )


def test_each_class_counts_the_prompts_that_did_what_it_says() -> None:
    rows = [
        Prompt("kept for choosing", REFUSED, PLAIN, True, (1,), True),
        Prompt("refused", REFUSED, PLAIN, False, (1,), True),
        Prompt("answered all the same", REFUSED, PLAIN, False, (1,), False),
        Prompt("harmless", HARMLESS, PLAIN, False, (1,), False),
        Prompt("refused though harmless", HARMLESS, PLAIN, False, (1,), True),
        Prompt("with tools", REFUSED, TOOLS, False, (1,), True),
    ]
    found = replace(measurement(), prompts=PromptSet(tuple(rows), ("a",), {}))
    classes = {(PLAIN, REFUSED): [1], (PLAIN, COMPLIED): [2], (PLAIN, HARMLESS): [3]}
    for (variant, kind), wanted in {**classes, (TOOLS, REFUSED): [5]}.items():
        assert list(members_of(found, variant, kind, validation=False)) == wanted, kind


def test_candidates_are_unit_directions_and_one_without_a_difference_says_so() -> None:
    found = make_candidates(measurement(), strengths=(1.0, 1.5), projected=True)
    first = [c for c in found if c.kind == SINGLE and c.layer == 0]
    assert first
    assert not any(c.directions for c in first)
    usable = [c for c in found if c.directions]
    for candidate in usable:
        assert len(candidate.directions) == 8
        for vector in candidate.directions.values():
            assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    single = next(c for c in usable if c.kind == SINGLE)
    assert len({v.tobytes() for v in single.directions.values()}) == 1
    by_layer = next(c for c in usable if c.kind == BY_LAYER)
    assert len({v.tobytes() for v in by_layer.directions.values()}) == 8
    assert len({c.id for c in found}) == len(found)
    harmless = measurement().harmless_mean(PLAIN)
    projected = next(c for c in usable if c.projected and c.kind == SINGLE)
    place = harmless[projected.position, 2 * projected.layer]
    assert abs(projected.directions[0, "mlp"] @ place) / np.linalg.norm(place) < 1e-6


def test_strengths_by_layer_are_read_strictly() -> None:
    assert parse_strengths(["1-3=0.5", "2=0"], 4) == {1: 0.5, 2: 0.0, 3: 0.5}
    for bad in ("1-9=1", "3-1=1", "x=1", "1=", "1=9", "1=1.2.3", "1=."):
        with pytest.raises(InputError, match="--layer-strength"):
            parse_strengths([bad], 4)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hermes-nano measured on 48 prompts of each kind, and its candidates ranked."""
    place = tmp_path_factory.mktemp("nano")
    files = []
    for kind in (REFUSED, HARMLESS):
        lines = (NANO / "abliteration" / f"{kind}.jsonl").read_text().splitlines()[:48]
        files.append(place / f"{kind}.jsonl")
        files[-1].write_text("\n".join(lines) + "\n")
    assert measure(str(NANO), *files, place / "m").nothing is None
    select(str(NANO), place / "m", strengths=(1.5,))
    return place / "m"


def test_on_hermes_nano_the_refusal_is_found_and_random_directions_do_nothing(chosen: Path) -> None:
    baseline = read_measurement(chosen).baseline
    assert (baseline.refused, baseline.prompts, baseline.harmless_refused) == (48, 48, 0)
    selection = read_selection(chosen)
    best = selection.best
    assert best is not None
    assert best.kind == BY_LAYER
    assert best.bypassed is not None
    assert best.bypassed >= 0.9
    random = [row for row in selection.ranked if row.kind == "random"]
    assert len(random) == 3
    assert all(row.bypassed == 0 for row in random)
    assert all(row.why for row in selection.ranked if not row.sound)


def test_choosing_goes_on_after_the_last_pass(
    chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(chosen, tmp_path / "m")
    (folder / "selection.json").unlink()
    monkeypatch.setattr("quantize.abliteration.selection.STATES_BYTES", 12 << 20)
    passes: list[int] = []

    def look(what: str, done: int, total: int) -> None:
        passes.append(total) if what.startswith("layer 0") and done == 1 else None
        if len(passes) == stop:
            raise KeyboardInterrupt

    stop = 3
    with pytest.raises(KeyboardInterrupt):
        select(str(NANO), folder, strengths=(1.5,), on_progress=look)
    assert not (folder / "selection.json").exists()
    first, stop = len(passes), -1
    select(str(NANO), folder, strengths=(1.5,), on_progress=look)
    resumed = len(passes) - first
    (folder / "selection.json").rename(tmp_path / "resumed.json")
    passes.clear()
    select(str(NANO), folder, strengths=(1.5,), on_progress=look)
    assert 0 < resumed == len(passes) - 2, "two passes were not made again"
    resumed_rows, rows = (
        {row["id"]: row for row in json.loads(path.read_text())["ranked"]}
        for path in (tmp_path / "resumed.json", folder / "selection.json")
    )
    assert resumed_rows == rows
    assert not list(folder.glob("*unfinished*"))


def test_an_edit_says_where_it_comes_from_and_names_no_path(chosen: Path, tmp_path: Path) -> None:
    apply(str(NANO), chosen, tmp_path / "edit", layer_strengths=["4=0"])
    text = (tmp_path / "edit" / "edit.json").read_text()
    recipe = json.loads(text)
    assert len(recipe["edits"]) == 8
    assert not any(".layers.4." in line["tensor"] for line in recipe["edits"])
    assert {"refused", "harmless", "templates"} == set(recipe["provenance"]["prompt_sets_sha256"])
    assert str(tmp_path) not in text
    assert str(chosen) not in text
    with pytest.raises(InputError, match="no candidate 'x'"):
        apply(str(NANO), chosen, tmp_path / "other", candidate="x")
    with pytest.raises(InputError, match="none for the embedding"):
        apply(str(NANO), chosen, tmp_path / "other", embeddings=True)


PEAK = """
import sys
from pathlib import Path
from quantize.activations.residuals import residual_sums
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
before = peak = anonymous()
def look(*progress):
    global peak
    peak = max(peak, anonymous())
prompts = [[257, *range(20)]] * 16
residual_sums(Path(sys.argv[1]), prompts, [0] * 16, 4, int(sys.argv[2]), on_progress=look)
print(peak - before)
"""


def test_memory_for_measuring_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    used = {}
    for layers in (4, 32):
        shape = Shape(hidden=512, intermediate=1024, layers=layers)
        folder = write_checkpoint(tmp_path / str(layers), shape=shape)
        command = [sys.executable, "-c", PEAK, str(folder), str(layers)]
        # a real layer's tensors are mapped and unmapped; without this, small ones fragment the heap
        room = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=room)
        used[layers] = int(done.stdout)
    layer_kib = 4 * (2 * 512 * 512 + 2 * 256 * 512 + 3 * 512 * 1024) // 1024
    means_kib = 8 * 4 * 2 * (32 - 4) * 512 // 1024  # one vector for each place: all that grows
    assert used[32] - used[4] < layer_kib + means_kib
