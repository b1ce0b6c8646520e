"""`release check` finds what was done to a release since it was built; untouched, it passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.errors import CheckpointError
from tests.verify.release.releases import build_in, key_in
from verify.check import State
from verify.release.check import Checked, check_release
from verify.release.signing import Identity, make_key, sign

GGUF = "Mini-GGUF"


def failed(checked: Checked) -> set[str]:
    return {o.check for o in checked.outcomes if o.verdict.state is State.FAIL}


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def test_an_untouched_release_passes_by_its_key_and_as_a_single_repository(
    finished: Path, dist: Path
) -> None:
    by = Identity(key=finished / "key.pem.pub")
    for place in (finished / "dist", dist, dist / GGUF, dist / "Mini-FP8_DYNAMIC"):
        checked = check_release(place, by)
        assert checked.passed, checked.outcomes
        assert len(checked.outcomes) == 6
    (dist / GGUF / ".gitattributes").write_text("* -text")  # the hub adds it
    assert check_release(dist / GGUF, by).passed


def test_a_flipped_byte_is_found_in_every_file_of_a_release(dist: Path) -> None:
    files = sorted(path for path in dist.rglob("*") if path.is_file())
    assert len(files) > 25
    for path in files:
        kept = path.read_bytes()
        flip(path, len(kept) // 2)
        try:
            found = not check_release(dist).passed
        except CheckpointError:  # a manifest that is no JSON any more
            found = path.name == "manifest.json"
        assert found, path
        path.write_bytes(kept)
    assert check_release(dist).passed


@pytest.mark.parametrize("place", [0, 1, 2, 3, 500, -1])
def test_a_flipped_byte_is_found_anywhere_in_an_artifact(dist: Path, place: int) -> None:
    path = dist / GGUF / "Mini-Q8_0.gguf"
    flip(path, place)
    for folder in (dist, dist / GGUF):
        checked = check_release(folder)
        assert "files" in failed(checked)
        (named,) = [o for o in checked.outcomes if o.check == "files"]
        assert "Mini-Q8_0.gguf" in named.verdict.reason


def remove_artifact(dist: Path) -> None:
    (dist / GGUF / "Mini-Q4_K_M.gguf").unlink()


def remove_repository(dist: Path) -> None:
    shutil.rmtree(dist / "Mini-FP8_DYNAMIC")


def add_file(dist: Path) -> None:
    (dist / GGUF / "extra.bin").write_bytes(b"x")


def add_link(dist: Path) -> None:
    (dist / GGUF / "extra").symlink_to(dist / "manifest.json")


def cut_sums(dist: Path) -> None:
    path = dist / "SHA256SUMS"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")


def remove_signature(dist: Path) -> None:
    (dist / "model.sig").unlink()


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (remove_artifact, "files"),
        (remove_repository, "files"),
        (add_file, "files"),
        (add_link, "files"),
        (cut_sums, "checksums"),
        (remove_signature, "signature"),
    ],
)
def test_what_is_missing_or_too_much_is_named(
    dist: Path, damage: Callable[[Path], None], check: str
) -> None:
    damage(dist)
    checked = check_release(dist)
    assert check in failed(checked)
    assert checked.exit_code == 1


def test_a_manifest_that_was_adapted_to_changed_files_breaks_the_signature(
    dist: Path, finished: Path
) -> None:
    from verify.release.manifest import listed_files, write_manifest

    place = dist / GGUF
    flip(place / "Mini-Q8_0.gguf", 4000)
    manifest = json.loads((place / "manifest.json").read_text())
    write_manifest(place, {**manifest, "files": listed_files(place, {})})
    assert failed(check_release(place)) == {"signature"}
    other = make_key(dist / "other.pem")
    (place / "model.sig.pub").write_bytes(other.read_bytes())
    write_manifest(place, {**manifest, "files": listed_files(place, {})})
    sign(place, dist / "other.pem")  # whole again, but signed by somebody else
    assert check_release(place).passed
    assert failed(check_release(place, Identity(key=finished / "key.pem.pub"))) == {"signature"}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hf_" + "aB3" * 12, "a Hugging Face token"),
        ("ghp_" + "a1B2" * 9, "a GitHub token"),
        ("AKIA" + "A1" * 8, "an AWS key"),
        ("/".join(("", "home", "somebody", "models", "x")), "a local path"),
        ("/".join(("", "Users", "somebody", "models")), "a local path"),
        ("-----BEGIN PRIVATE KEY-----", "a private key"),
    ],
)
@pytest.mark.parametrize("name", ["README.md", "Mini-Q8_0.gguf"])
def test_a_path_or_token_is_found_in_any_file(dist: Path, text: str, what: str, name: str) -> None:
    with (dist / GGUF / name).open("ab") as file:
        file.write(b"\n" + text.encode() + b"\n")
    checked = check_release(dist / GGUF)
    assert "leaks" in failed(checked)
    (outcome,) = [o for o in checked.outcomes if o.check == "leaks"]
    assert what in outcome.verdict.reason
    assert text not in outcome.verdict.reason or len(text) < 28


def test_a_failed_artifact_cannot_be_written_into_a_manifest(dist: Path) -> None:
    path = dist / GGUF / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artifacts"][0]["verification"]["state"] = "fail"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="verification/state"):
        check_release(dist / GGUF)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"repositories": ["quarantine"]}, "repositories/0"),  # what the check looks past
        ({"repositories": [".cache"]}, "repositories/0"),
        ({"files": [{"path": "a\n/../../b", "size_bytes": 0, "sha256": "0" * 64}]}, "files/0/path"),
        ({"files": [{"path": "../b", "size_bytes": 0, "sha256": "0" * 64}]}, "files/0/path"),
    ],
)
def test_a_manifest_names_nothing_beside_or_outside_its_folder(
    dist: Path, change: dict[str, object], where: str
) -> None:
    path = dist / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=f": {where}: "):
        check_release(dist)


def test_a_listed_name_that_no_disk_can_hold_is_a_finding(dist: Path) -> None:
    path = dist / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"].append({"path": "a" * 5000, "size_bytes": 1, "sha256": "0" * 64})
    path.write_text(json.dumps(manifest))
    assert "files" in failed(check_release(dist))


def test_an_unsigned_release_says_so_and_satisfies_no_key(
    tmp_path: Path, reference_folder: Path
) -> None:
    assert build_in(tmp_path, reference_folder, signing=None, artifacts=["Q8_0"]).exit_code == 0
    assert check_release(tmp_path / "dist").passed
    by = Identity(key=Path(f"{key_in(tmp_path)}.pub"))
    assert failed(check_release(tmp_path / "dist", by)) == {"signature"}
