"""The whole command on hermes-nano with real engines: what passes, what fails, what it leaves.

The edit is of random directions and prompts are few, so that nothing here hangs on what the model
has learned: replies cannot decide anything, files can.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from safetensors.torch import load_file, save_file

from convert.gguf_reader import read_gguf
from quantize.job import quantize
from tests.command import invoke
from tests.quantize.abliteration.edits import random_edit, writers
from tests.verify.test_report import SCHEMA as VERIFY_SCHEMA
from tests.verify.test_report import parse
from verify import abliteration as package

NANO = Path(__file__).parents[3] / "examples" / "hermes-nano"
TARGETS = {"FP8_DYNAMIC": "m-FP8_DYNAMIC", "Q4_K_M": "m-Q4_K_M.gguf"}
LAYERS = json.loads((NANO / "config.json").read_text())["num_hidden_layers"]
HIDDEN = json.loads((NANO / "config.json").read_text())["hidden_size"]
PROMPTS = 3
SCHEMA = json.loads((Path(package.__path__[0]) / "abliteration.schema.json").read_text())
REGISTRY: Registry[Any] = Registry().with_resource(
    "report.schema.json", Resource.from_contents(VERIFY_SCHEMA)
)


def first_lines(source: Path, place: Path, count: int) -> Path:
    lines = source.read_text().splitlines()[:count]
    path = place / f"{source.parent.name}-{source.name}"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("gate")
    random_edit(place / "edit", writers(LAYERS), hidden=HIDDEN)
    quantize(str(NANO), place / "plain", list(TARGETS), name="m")
    quantize(str(NANO), place / "made", list(TARGETS), abliterate=place / "edit", name="m")
    first_lines(NANO / "abliteration" / "refused.jsonl", place, PROMPTS)
    first_lines(NANO / "abliteration" / "harmless.jsonl", place, PROMPTS)
    first_lines(NANO / "prompts" / "single.jsonl", place, PROMPTS)
    return place


def verify(made: Path, edited: Path, targets: list[str], out: Path) -> tuple[int, dict[str, Any]]:
    """The exit code and report.json."""
    words: list[object] = ["abliterate", "verify", NANO, made / "edit", "--out", out]
    for target in targets:
        name = TARGETS[target]
        words += ["--pair", f"{made / 'plain' / name},{edited / name}"]
    words += ["--refused", made / "abliteration-refused.jsonl"]
    words += ["--harmless", made / "abliteration-harmless.jsonl"]
    words += ["--suite", made / "prompts-single.jsonl", "--control", edited / TARGETS["Q4_K_M"]]
    shown = invoke(*words)
    assert shown.exception is None or isinstance(shown.exception, SystemExit), shown.output
    report = json.loads((out / "report.json").read_text(), parse_constant=refuse)
    Draft202012Validator(SCHEMA, registry=REGISTRY).validate(report)
    return shown.exit_code, report


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def outcomes(artifact: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {outcome["check"]: outcome for outcome in artifact["outcomes"]}


def test_whole_artifacts_pass_what_files_can_decide(made: Path, tmp_path: Path) -> None:
    code, report = verify(made, made / "made", list(TARGETS), tmp_path)
    assert code == 3, "too few prompts decide nothing"
    assert [pair["artifact"]["name"] for pair in report["pairs"]] == list(TARGETS.values())
    for pair in report["pairs"]:
        found = outcomes(pair["artifact"])
        assert {found[name]["verdict"]["state"] for name in ("residue", "untouched")} == {"pass"}
        assert found["refusals"]["verdict"]["numbers"]["after_of"] == PROMPTS
        assert {"compliance", "harmless", "degenerate", "drift", "tool_calls"} <= found.keys()
        assert len(found["residue"]["points"]) == 2 * LAYERS
        assert pair["artifact"]["engine"]["name"]
        assert set(pair["scores"]) == {
            f"{kind} {side}" for kind in ("refused", "harmless") for side in ("before", "after")
        }
    assert [control["state"] for control in report["controls"]] == ["not_enough_evidence"]

    html = (tmp_path / "report.html").read_text()
    page = parse(html)
    assert page.tags["script"] == 0
    assert not any("//" in link for link in page.links if not link.startswith("data:"))
    assert page.tags["img"] == len(TARGETS), "refusal before and after, of each artifact"
    text = " ".join(page.text.split())
    for words in ("refusals removed: not enough evidence", "Whoever deploys it is responsible"):
        assert words in text
    for name in (*TARGETS.values(), "model.layers.0.self_attn.o_proj.weight"):
        assert name in text
    junit = ElementTree.fromstring((tmp_path / "junit.xml").read_text())
    assert [suite.get("name") for suite in junit] == [*TARGETS.values(), TARGETS["Q4_K_M"]]
    assert junit.get("failures") == "0"
    assert "Refusals were removed from this model" in (tmp_path / "card.md").read_text()


def test_one_tensor_that_was_not_edited_fails_the_gate_by_name(made: Path, tmp_path: Path) -> None:
    name = TARGETS["Q4_K_M"]
    shutil.copytree(made / "made", tmp_path / "damaged")
    plain, damaged = made / "plain" / name, tmp_path / "damaged" / name
    source, there = (read_gguf(p).tensors["blk.2.ffn_down.weight"] for p in (plain, damaged))
    assert source.ggml_type == there.ggml_type
    with damaged.open("r+b") as file:
        file.seek(there.offset)
        file.write(read_gguf(plain).read("blk.2.ffn_down.weight"))
    code, report = verify(made, tmp_path / "damaged", ["Q4_K_M"], tmp_path / "out")
    assert code == 1
    (pair,) = report["pairs"]
    failed = {
        o["check"]: o for o in pair["artifact"]["outcomes"] if o["verdict"]["state"] == "fail"
    }
    assert set(failed) == {"residue"}
    (finding,) = failed["residue"]["findings"]
    assert finding["subject"] == "model.layers.2.mlp.down_proj.weight"
    assert finding["message"].startswith("edited at strength ")
    page = parse((tmp_path / "out" / "report.html").read_text())
    assert finding["message"] in page.text
    junit = ElementTree.fromstring((tmp_path / "out" / "junit.xml").read_text())
    (failure,) = junit.iter("failure")
    assert finding["subject"] in (failure.text or "")


@pytest.mark.parametrize("promised", [True, False])
def test_an_artifact_that_lacks_a_tensor_fails_by_name(
    made: Path, tmp_path: Path, promised: bool
) -> None:
    folder = tmp_path / "damaged" / TARGETS["FP8_DYNAMIC"]
    shutil.copytree(made / "made", tmp_path / "damaged")
    gone = "model.layers.1.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    del tensors[gone]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if not promised:
        index = folder / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        del content["weight_map"][gone]
        index.write_text(json.dumps(content))
    code, report = verify(made, tmp_path / "damaged", ["FP8_DYNAMIC"], tmp_path / "out")
    assert code == 1
    found = outcomes(report["pairs"][0]["artifact"])
    for check in ("structure",) if promised else ("residue", "untouched"):
        assert found[check]["verdict"]["state"] == "fail"
        assert gone in str(found[check]), check
    assert str(tmp_path) not in (tmp_path / "out" / "report.json").read_text()
