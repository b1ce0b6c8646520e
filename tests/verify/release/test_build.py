"""`release build`: what passed is released, what did not is laid aside, nothing is done twice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import verify.release.build as verb
from convert.errors import InputError, OutputError
from quantize.fit.subject import read_subject
from tests.verify.release.releases import build_in, engines, write_recipe
from verify.check import State
from verify.engines import Engine
from verify.release.check import check_release
from verify.release.placing import link


def manifest_of(folder: Path, repository: str = "") -> Any:
    return json.loads((folder / "dist" / repository / "manifest.json").read_text())


def test_a_release_holds_what_its_manifest_and_card_say(finished: Path) -> None:
    manifest = manifest_of(finished)
    assert manifest["repositories"] == ["Mini-FP8_DYNAMIC", "Mini-GGUF"]
    assert {a["path"] for a in manifest["artifacts"]} == {
        "Mini-FP8_DYNAMIC",
        "Mini-GGUF/Mini-Q8_0.gguf",
        "Mini-GGUF/Mini-Q4_K_M.gguf",
    }
    q4 = next(a for a in manifest["artifacts"] if a["target"] == "Q4_K_M")
    assert q4["tensors"]["blk.0.attn_q.weight"] == "Q4_K"
    assert q4["size_bytes"] == (finished / "dist" / q4["path"]).stat().st_size
    assert manifest["source"]["files"]["model.safetensors"]["size_bytes"] > 0
    assert len(manifest["tools"]["libggml-base"]["sha256"]) == 64
    card = (finished / "dist" / "Mini-GGUF" / "README.md").read_text()
    for words in (
        "base_model: acme/Mini\nbase_model_relation: quantized\nlicense: apache-2.0\n",
        "- gguf\n",
        "| `Mini-Q8_0.gguf` | Q8_0 |",
        "90 of 90",
        "llama-server -hf acme/Mini-GGUF:Q4_K_M",
        "<|im_start|>user\n{prompt}<|im_end|>",
        "**planned, not measured**",
    ):
        assert words in card
    other = (finished / "dist" / "Mini-FP8_DYNAMIC" / "README.md").read_text()
    assert "vllm serve acme/Mini-FP8_DYNAMIC" in other
    assert "- fp8\n" in other
    assert (finished / "dist" / "Mini-GGUF" / "LICENSE").read_text() == "Do as you please.\n"


def test_fit_reads_the_manifest_of_a_release_and_of_each_repository(finished: Path) -> None:
    for place, count in ((".", 3), ("Mini-GGUF", 2), ("Mini-FP8_DYNAMIC", 1)):
        subject = read_subject(str(finished / "dist" / place / "manifest.json"))
        assert len(subject.candidates) == count


def test_the_same_bytes_and_words_from_elsewhere_with_other_threads(
    finished: Path, tmp_path: Path, reference_folder: Path
) -> None:
    built = build_in(tmp_path / "far" / "away", reference_folder, threads=3)
    assert built.exit_code == 0
    ours, theirs = manifest_of(finished), manifest_of(tmp_path / "far" / "away")
    assert ours.pop("created")
    assert theirs.pop("created")
    differing = {"manifest.json", "SHA256SUMS", "model.sig", "model.sig.pub"}
    for manifest in (ours, theirs):  # the keys are others
        kept = [f for f in manifest["files"] if f["path"].rpartition("/")[2] not in differing]
        manifest["files"] = kept
    assert ours == theirs
    assert len(ours["files"]) > 15


def test_a_failed_gate_stops_exactly_that_artifact(tmp_path: Path, reference_folder: Path) -> None:
    built = build_in(tmp_path, reference_folder, broken=["Q4_K_M"])
    assert built.exit_code == 1
    states = {g.made.artifact.target: g.found.state for g in built.gated}
    assert states == {
        "FP8_DYNAMIC": State.PASS,
        "Q8_0": State.PASS,
        "Q4_K_M": State.FAIL,
    }
    manifest = manifest_of(tmp_path)
    assert {a["target"] for a in manifest["artifacts"]} == {"FP8_DYNAMIC", "Q8_0"}
    (withheld,) = manifest["withheld"]
    assert withheld["name"] == "Mini-Q4_K_M.gguf"
    assert withheld["state"] == "fail"
    assert not (tmp_path / "dist" / "Mini-GGUF" / "Mini-Q4_K_M.gguf").exists()
    aside = tmp_path / "dist" / "quarantine"
    assert (aside / "Mini-Q4_K_M.gguf").is_file()
    assert "agreement" in (aside / "Mini-Q4_K_M.gguf.report" / "report.html").read_text()
    assert check_release(tmp_path / "dist").passed
    assert build_in(tmp_path, reference_folder).exit_code == 1  # known by its fingerprint
    gates = {"suite": "suite.jsonl", "gate": "gate.yaml", "limit": 99}
    assert build_in(tmp_path, reference_folder, gates=gates).exit_code == 0  # asked anew
    assert not aside.exists()
    assert (tmp_path / "dist" / "Mini-GGUF" / "Mini-Q4_K_M.gguf").is_file()


def test_too_little_evidence_is_not_released(tmp_path: Path, reference_folder: Path) -> None:
    build_in(tmp_path, reference_folder, artifacts=["Q8_0"])
    gates = {"suite": "suite.jsonl", "gate": "gate.yaml", "limit": 5}
    built = build_in(tmp_path, reference_folder, artifacts=["Q8_0"], gates=gates)
    assert built.exit_code == 3
    assert not built.put_together
    assert {p.name for p in (tmp_path / "dist").iterdir()} == {".build", "quarantine"}


def test_again_nothing_is_done_and_a_new_artifact_only_adds_itself(
    tmp_path: Path, reference_folder: Path
) -> None:
    build_in(tmp_path, reference_folder, artifacts=["FP8_DYNAMIC", "Q8_0"])
    before = (tmp_path / "dist" / "manifest.json").read_bytes()
    again = build_in(tmp_path, reference_folder, artifacts=["FP8_DYNAMIC", "Q8_0"])
    assert again.was_there
    assert all(g.kept and g.made.kept for g in again.gated)
    assert (tmp_path / "dist" / "manifest.json").read_bytes() == before
    more = build_in(tmp_path, reference_folder)
    assert [g.kept for g in more.gated] == [True, True, False]
    assert [g.made.kept for g in more.gated] == [True, True, False]
    assert len(manifest_of(tmp_path)["artifacts"]) == 3


def test_what_another_recipe_made_under_the_same_name_is_made_anew(
    tmp_path: Path, reference_folder: Path
) -> None:
    build_in(tmp_path, reference_folder, artifacts=["FP8_DYNAMIC", "Q8_0"])
    options = {"output_type": "Q6_K"}
    again = build_in(tmp_path, reference_folder, artifacts=["FP8_DYNAMIC", "Q8_0"], options=options)
    assert [g.made.kept for g in again.gated] == [True, False]
    entry = next(a for a in manifest_of(tmp_path)["artifacts"] if a["target"] == "Q8_0")
    assert entry["tensors"]["output.weight"] == "Q6_K"
    assert check_release(tmp_path / "dist").passed


def test_only_makes_a_part_and_the_last_part_puts_the_release_together(
    tmp_path: Path, reference_folder: Path
) -> None:
    part = build_in(tmp_path, reference_folder, only=["Q8_0"])
    assert part.left_out == ("FP8_DYNAMIC", "Q4_K_M")
    assert part.exit_code == 0
    assert not (tmp_path / "dist" / "manifest.json").exists()
    whole = build_in(tmp_path, reference_folder)
    assert whole.put_together
    assert [g.kept for g in whole.gated] == [False, True, False]
    with pytest.raises(InputError, match="did you mean 'Q8_0'"):
        build_in(tmp_path, reference_folder, only=["Q8_O"])


def test_a_build_killed_while_it_verifies_goes_on_with_the_next_artifact(
    tmp_path: Path, reference_folder: Path
) -> None:
    answer = engines(reference_folder)

    def open_engine(artifact: Any) -> Engine:
        if artifact.type == "Q4_K_M":
            raise KeyboardInterrupt
        return answer(artifact)

    recipe = write_recipe(tmp_path, reference_folder, signing=None)
    with pytest.raises(KeyboardInterrupt):
        verb.build(recipe, tmp_path / "dist", cache=tmp_path / "cache", open_engine=open_engine)
    built = build_in(tmp_path, reference_folder, signing=None)
    assert [g.kept for g in built.gated] == [True, True, False]
    assert all(g.made.kept for g in built.gated)


@pytest.mark.parametrize("moves", [1, 4, 9, 17])
def test_a_build_killed_while_it_moves_a_release_into_place_is_mended(
    tmp_path: Path, reference_folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    build_in(tmp_path, reference_folder, artifacts=["FP8_DYNAMIC", "Q8_0"])
    rename, left = os.rename, iter(range(moves))

    def stop(source: Any, place: Any, **more: Any) -> None:
        moved = {Path(source).parent.name, Path(place).parent.name} & {"old", "next"}
        if moved and next(left, None) is None:
            raise KeyboardInterrupt
        rename(source, place, **more)

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        build_in(tmp_path, reference_folder)
    monkeypatch.undo()
    assert not (tmp_path / "dist" / "manifest.json").exists()
    assert build_in(tmp_path, reference_folder).put_together
    assert check_release(tmp_path / "dist").passed


def test_what_an_engine_says_of_a_broken_artifact_stops_no_other(
    tmp_path: Path, reference_folder: Path
) -> None:
    answer = engines(reference_folder)

    def open_engine(artifact: Any) -> Engine:
        if artifact.type == "Q4_K_M":
            raise InputError(f"{artifact.path}: cannot be loaded")
        return answer(artifact)

    recipe = write_recipe(tmp_path, reference_folder, signing=None)
    built = verb.build(recipe, tmp_path / "dist", cache=tmp_path / "c", open_engine=open_engine)
    assert built.exit_code == 1
    (withheld,) = manifest_of(tmp_path)["withheld"]
    assert withheld["reason"] == "agreement: Mini-Q4_K_M.gguf: cannot be loaded"
    assert check_release(tmp_path / "dist").passed


def test_an_artifact_that_changed_since_it_was_made_is_not_released(
    tmp_path: Path, reference_folder: Path
) -> None:
    build_in(tmp_path, reference_folder, only=["Q8_0"])
    path = tmp_path / "dist" / ".build" / "artifacts" / "Mini-Q8_0.gguf"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(OutputError, match=r"Mini-Q8_0\.gguf: has changed since it was made"):
        build_in(tmp_path, reference_folder)
    assert not (tmp_path / "dist" / "manifest.json").exists()


def test_one_repository_for_all(tmp_path: Path, reference_folder: Path) -> None:
    publish = {"repositories": "one", "owner": "acme"}
    assert build_in(tmp_path, reference_folder, publish=publish).exit_code == 0
    assert manifest_of(tmp_path)["repositories"] == ["Mini"]
    assert (tmp_path / "dist" / "Mini" / "Mini-FP8_DYNAMIC" / "config.json").is_file()
    card = (tmp_path / "dist" / "Mini" / "README.md").read_text()
    assert 'hf download acme/Mini --include "Mini-FP8_DYNAMIC/*" --local-dir .' in card
    assert check_release(tmp_path / "dist").passed


def leave_a_stranger_s_file(folder: Path) -> None:
    (folder / "dist").mkdir()
    (folder / "dist" / "thesis.doc").write_text("do not touch")


def make_out_a_file(folder: Path) -> None:
    (folder / "dist").write_text("")


@pytest.mark.parametrize(
    ("prepare", "changes", "words"),
    [
        (leave_a_stranger_s_file, {}, "holds thesis.doc, which is of no release"),
        (make_out_a_file, {}, "cannot be written to"),
        (None, {"licence": {"id": "apache-2.0"}}, "licence apache-2.0: copy of the licence: no"),
        (None, {"licence": {}}, "set licence.id"),
        (None, {"licence": {"id": "mit", "files": ["LICENCE"]}}, "the recipe names is gone"),
        (None, {"fit": {"devices": ["RTX 40900"]}}, "'RTX 40900' is not known"),
        (None, {"signing": {"method": "key", "key": "none.pem"}, "_key": None}, "no signing key"),
        (None, {"signing": {"method": "key"}, "_key": None}, "signing: no key"),
        (None, {"gates": {"suite": "gone.jsonl"}}, "gone.jsonl"),
        (None, {"base_model": None}, "base_model: missing"),
        (None, {"source": "./gone"}, "not a hub id"),
        (None, {"source": "acme/None", "revision": "v9"}, "acme/None@v9: cannot be fetched"),
    ],
)
def test_what_cannot_end_well_is_said_before_anything_is_made(
    tmp_path: Path,
    reference_folder: Path,
    prepare: Callable[[Path], None] | None,
    changes: dict[str, Any],
    words: str,
) -> None:
    if prepare:
        prepare(tmp_path)
    signs = "_key" in changes
    stated = {"signing": None} | {k: v for k, v in changes.items() if k != "_key"}
    recipe = write_recipe(tmp_path, reference_folder, **stated)
    key = None if signs else tmp_path / "unused.pem"
    with pytest.raises(InputError, match=words):
        verb.build(recipe, tmp_path / "dist", key=key, open_engine=engines(reference_folder))
    assert not (tmp_path / "dist" / ".build" / "artifacts").exists()


def test_a_name_of_this_machine_in_a_file_stops_the_release(
    tmp_path: Path, reference_folder: Path
) -> None:
    card = {"about": f"made in {tmp_path}"}
    with pytest.raises(InputError, match=r"README.md: would carry a folder of the build machine"):
        build_in(tmp_path, reference_folder, card=card, artifacts=["Q8_0"])
    assert not (tmp_path / "dist" / "Mini-GGUF").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_one_line(tmp_path: Path, reference_folder: Path) -> None:
    (tmp_path / "dist").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written to"):
        build_in(tmp_path, reference_folder)


def test_a_file_where_quarantine_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("w")
    (tmp_path / "quarantine").write_text("a file")
    with pytest.raises(OutputError, match="quarantine: cannot be made: File exists"):
        link(tmp_path / "weights", tmp_path / "quarantine" / "weights")
