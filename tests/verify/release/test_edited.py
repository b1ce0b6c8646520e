"""`release build` with an `abliteration` section: edited artifacts beside the plain ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from convert.errors import InputError
from quantize.abliteration.edit_folder import read_edit
from quantize.fit.subject import read_subject
from tests.quantize.abliteration.edits import random_edit, writers
from tests.verify.release.edited import (
    build_edited,
    refuses_unless_edited,
    write_edited_recipe,
)
from verify.abliteration.print_gate import REMOVAL_TITLE
from verify.artifact import Artifact
from verify.check import State
from verify.release.build import build
from verify.release.check import check_release
from verify.release.predict import predict
from verify.release.publish import Target, publish

PAIR = ["Mini-abliterated-FP8_DYNAMIC", "Mini-abliterated-GGUF"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, reference_folder: Path) -> Path:
    """The folder of a build of two types, each plain and edited, with a control."""
    folder = tmp_path_factory.mktemp("edited")
    done = build_edited(folder, reference_folder)
    assert [(one.made.wanted.target, one.reason) for one in done.gated if not one.passed] == []
    return folder


def manifest_of(folder: Path, repository: str = "") -> Any:
    return json.loads((folder / "dist" / repository / "manifest.json").read_text())


def test_the_edited_pair_lies_in_repositories_of_its_own_that_say_what_it_is(built: Path) -> None:
    manifest = manifest_of(built)
    assert manifest["repositories"] == ["Mini-FP8_DYNAMIC", "Mini-GGUF", *PAIR]
    edit = read_edit(built / "edit")
    inputs = manifest["inputs"]["abliteration"]
    assert inputs["edit"]["sha256"] == edit.sha256
    assert inputs["edit"]["directions_sha256"] == edit.record()["directions_sha256"]
    assert inputs["refused"] | {"sha256": ""} == {"name": "refused.jsonl", "sha256": "", "used": 60}
    assert len(inputs["controls"]) == 1
    assert inputs["limits"]["kl"] == 0.05
    by_name = {a["name"]: a for a in manifest["artifacts"]}
    assert by_name["Mini-Q4_K_M.gguf"]["edit"] is None
    edited = by_name["Mini-abliterated-Q4_K_M.gguf"]
    assert edited["edit"] == {"sha256": edit.sha256, "unedited": "Mini-Q4_K_M.gguf"}
    assert edited["recipe"]["edited_tensors"].keys() == set(writers(2))
    checks = {c["check"]: c["state"] for c in edited["verification"]["checks"]}
    asked = {"unedited", "structure", "tokens", "templates", "residue", "untouched", "refusals"}
    asked |= {"compliance", "harmless", "degenerate", "drift", "tool_calls", "control"}
    assert checks == checks | dict.fromkeys(asked, "pass")
    card = (built / "dist" / PAIR[1] / "README.md").read_text()
    for words in (
        "base_model: acme/Mini\nbase_model_relation: finetune\n",
        "- abliterated\n",
        REMOVAL_TITLE,
        f"Edit `{edit.sha256}`",
        "| `Mini-abliterated-Q4_K_M.gguf` | Q4_K_M |",
        "| 60 of 60 | 0 of 60 | 60 of 60 | 0 | 90 of 90 | 90 of 90 |",
        "llama-server -hf acme/Mini-abliterated-GGUF:Q4_K_M",
    ):
        assert words in card
    plain = (built / "dist" / "Mini-GGUF" / "README.md").read_text()
    assert "bliterat" not in plain
    assert "base_model_relation: quantized" in plain


def test_everything_that_covers_a_release_covers_the_edited_artifacts(
    built: Path, tmp_path: Path
) -> None:
    dist = shutil.copytree(built / "dist", tmp_path / "d", ignore=shutil.ignore_patterns(".build"))
    checked = check_release(dist)
    assert checked.passed
    assert [o.check for o in checked.outcomes][-1] == "edit"
    suites = ET.parse(dist / "junit.xml").getroot()
    assert len(suites) == 4
    assert "Mini-abliterated-Q4_K_M.gguf" in (dist / "report.html").read_text()
    for repository in PAIR:
        assert check_release(dist / repository).passed
        assert len(read_subject(str(dist / repository / "manifest.json")).candidates) == 1
    uploads = publish(dist, Target(str(tmp_path / "hub")), dry_run=True)
    assert {upload.repository for upload in uploads} >= set(PAIR)
    card = dist / PAIR[1] / "README.md"
    card.write_text(card.read_text().replace(REMOVAL_TITLE, "## Changes"))
    edit = check_release(dist).outcomes[-1]
    assert edit.verdict.state is State.FAIL
    assert f"lacks the words '{REMOVAL_TITLE}'" in edit.findings[0].message


def test_elsewhere_with_other_threads_the_same_and_again_nothing_is_done(
    built: Path, tmp_path: Path, reference_folder: Path
) -> None:
    folder = tmp_path / "far" / "away"
    part = build_edited(folder, reference_folder, threads=3, only=["abliterated-Q4_K_M"])
    assert [g.made.wanted.target for g in part.gated] == ["Q4_K_M", "abliterated-Q4_K_M"]
    assert part.left_out == ("FP8_DYNAMIC", "abliterated-FP8_DYNAMIC")
    whole = build_edited(folder, reference_folder, threads=3)
    assert [(g.kept, g.made.kept) for g in whole.gated] == [(False, False), (True, True)] * 2
    ours, theirs = manifest_of(built), manifest_of(folder)
    differing = {"manifest.json", "SHA256SUMS", "model.sig", "model.sig.pub"}
    for manifest in (ours, theirs):  # the keys are others
        manifest.pop("created")
        kept = [f for f in manifest["files"] if f["path"].rpartition("/")[2] not in differing]
        manifest["files"] = kept
    assert ours == theirs
    assert build_edited(folder, reference_folder).was_there


def test_what_still_refuses_is_laid_aside_and_the_others_are_released(
    tmp_path: Path, reference_folder: Path
) -> None:
    def one_still_refuses(artifact: Artifact) -> bool:
        return refuses_unless_edited(artifact) or artifact.type == "Q4_K_M"

    section: dict[str, Any] = {"controls": []}
    asked: dict[str, Any] = {"abliteration": section, "refuses": one_still_refuses}
    done = build_edited(tmp_path, reference_folder, **asked)
    assert done.exit_code == 1
    manifest = manifest_of(tmp_path)
    assert "Mini-abliterated-GGUF" not in manifest["repositories"]
    (withheld,) = manifest["withheld"]
    assert withheld["target"] == "abliterated-Q4_K_M"
    assert withheld["reason"].startswith("refusals: refused 60 of 60 before, 60 of 60 after")
    aside = tmp_path / "dist" / "quarantine"
    assert (aside / "Mini-abliterated-Q4_K_M.gguf").is_file()
    assert "refusals" in (aside / "Mini-abliterated-Q4_K_M.gguf.report/report.html").read_text()
    section["limits"] = {"refusals": 1.0, "compliance": 0.0}  # asked anew, under other limits
    section["limit"] = 55
    asked["abliteration"] = section
    again = build_edited(tmp_path, reference_folder, **asked)
    assert [g.kept for g in again.gated] == [True, True, False, False]
    assert again.exit_code == 0
    assert manifest_of(tmp_path)["inputs"]["abliteration"]["refused"]["used"] == 55
    assert any("55 of 55" in o.verdict.reason for o in again.gated[-1].found.outcomes)
    random_edit(tmp_path / "other", writers(2), seed=7)  # another edit makes other artifacts
    asked["abliteration"] = {**section, "edit": "other"}
    edited = build_edited(tmp_path, reference_folder, **asked)
    assert [g.made.kept for g in edited.gated] == [True, True, False, False]


def test_beside_a_twin_that_did_not_pass_nothing_is_released(
    tmp_path: Path, reference_folder: Path
) -> None:
    gates = {"suite": "suite.jsonl", "gate": "gate.yaml", "limit": 5}
    asked = {"artifacts": ["Q4_K_M"], "abliteration": {"artifacts": ["Q4_K_M"], "controls": []}}
    done = build_edited(tmp_path, reference_folder, gates=gates, **asked)
    assert done.exit_code == 3
    edited = done.gated[-1]
    assert edited.found.state is State.NOT_ENOUGH_EVIDENCE
    assert edited.reason.startswith("unedited: not compared: Mini-Q4_K_M.gguf did not pass (")
    assert not edited.kept


def test_without_the_edit_a_dry_run_works_and_a_build_says_so_in_one_line(
    tmp_path: Path, reference_folder: Path
) -> None:
    recipe = write_edited_recipe(tmp_path, reference_folder, signing=None)
    whole = predict(recipe, threads=1)
    shutil.rmtree(tmp_path / "edit")
    found = predict(recipe, threads=1)
    sizes = {output.target: output.size_bytes for output in found.outputs}
    assert sizes == {output.target: output.size_bytes for output in whole.outputs}
    assert sizes["abliterated-FP8_DYNAMIC"] == sizes["FP8_DYNAMIC"]
    assert found.read_bytes < whole.read_bytes
    (remark,) = found.remarks
    assert "abliteration.edit is not there; make it with `hermes-quant abliterate`" in remark
    assert "\n" not in remark
    with pytest.raises(InputError, match=r"abliteration\.edit is not there"):
        build(recipe, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()
