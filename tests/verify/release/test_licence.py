"""What licences ask of a release: texts, words and names, and that their absence is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.errors import InputError
from tests.verify.release.releases import build_in
from verify.check import State
from verify.release.check import check_release
from verify.release.licence import duties_of, licence_texts, notice_text

HERMES = "NousResearch/Hermes-3-Llama-3.1-8B"


@pytest.mark.parametrize(
    ("licence", "name", "base", "met"),
    [
        ("llama3.1", "Llama-3.1-Hermes", "acme/Other", True),
        ("llama3.1", "Hermes-3-Llama-3.1-8B", HERMES, True),
        ("llama3.1", "Hermes-3-Llama-3.1-8B-abliterated", HERMES, True),
        ("llama3.1", "Wolf-8B", HERMES, False),
        ("llama3", "Llama-Wolf", "acme/Other", False),  # Llama 3 asks for "Llama 3"
        ("llama3", "Llama-3-Wolf", "acme/Other", True),
        ("llama3.2", "llama_wolf", "acme/Other", True),
        ("apache-2.0", "Wolf", "acme/Other", True),
    ],
)
def test_the_name_begins_as_the_version_of_the_licence_asks(
    tmp_path: Path, licence: str, name: str, base: str, met: bool
) -> None:
    (tmp_path / "LICENSE").write_text("text")
    duties = duties_of(licence, licence_texts(tmp_path), name, base)
    assert all(duty.met for duty in duties.duties) is met
    if not met:
        with pytest.raises(InputError, match=f"licence {licence}: name begins with"):
            duties.check()


def test_a_licence_of_meta_s_whose_duties_are_not_known_is_refused() -> None:
    with pytest.raises(InputError, match=r"the duties of 'llama4' are not known here"):
        duties_of("llama4", {}, "Llama-4-Wolf", "acme/Other")


def test_a_missing_text_is_named_and_other_files_are_no_licence(tmp_path: Path) -> None:
    for name in ("LICENSE.py", "README.md", "model.safetensors"):
        (tmp_path / name).write_text("x")
    duties = duties_of("llama3.1", licence_texts(tmp_path), "Llama", HERMES)
    with pytest.raises(InputError, match=r"copy of the licence: no LICENSE beside the source"):
        duties.check()
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        (tmp_path / name).write_text("x")
    duties = duties_of("llama3.1", licence_texts(tmp_path), "Llama", HERMES)
    duties.check()
    assert set(duties.texts) == {"LICENSE.txt", "NOTICE", "USE_POLICY.md"}


def test_the_notice_keeps_what_was_there_and_adds_the_sentence_once(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "NOTICE").write_text("Acme made this.\n")
    duties = duties_of("llama3.1", licence_texts(tmp_path), "Llama", HERMES)
    text = notice_text(duties)
    assert text is not None
    assert text.startswith("Acme made this.\n\nLlama 3.1 is licensed under the Llama 3.1 Community")
    (tmp_path / "NOTICE").write_text(text)
    assert notice_text(duties) == text
    assert notice_text(duties_of("mit", {}, "x", "a/b")) is None


def test_a_licence_in_capitals_asks_for_the_same(tmp_path: Path) -> None:
    for licence in ("Apache-2.0", "MIT", "Llama3.1"):
        duties = duties_of(licence, licence_texts(tmp_path), "Llama", HERMES)
        assert duties.id == licence.lower()
        with pytest.raises(InputError, match="copy of the licence: no LICENSE"):
            duties.check()


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
def test_a_text_takes_no_place_of_a_file_that_was_verified(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    duties = duties_of("other", {}, "Mini", HERMES, [tmp_path / name])
    assert not duties.texts
    with pytest.raises(InputError, match=f"text {name}: would take the place of a file"):
        duties.check()


def test_a_notice_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / "NOTICE").write_bytes("Copyright \u00a9 Acme".encode("latin-1"))
    duties = duties_of("llama3.1", licence_texts(tmp_path), "Llama", HERMES)
    with pytest.raises(InputError, match="NOTICE: not UTF-8"):
        notice_text(duties)


def test_a_llama_release_carries_the_words_and_misses_them_when_they_go(
    tmp_path: Path, reference_folder: Path
) -> None:
    licence = {"id": "llama3.1", "files": ["LICENSE"]}
    built = build_in(
        tmp_path, reference_folder, licence=licence, name="Llama-Mini", artifacts=["Q8_0"]
    )
    assert built.exit_code == 0
    place = tmp_path / "dist" / "Llama-Mini-GGUF"
    assert "**Built with Llama**" in (place / "README.md").read_text()
    assert "Llama 3.1 Community License, Copyright" in (place / "NOTICE").read_text()
    for name, gone in (("README.md", "Built with Llama"), ("NOTICE", "Community License")):
        text = (place / name).read_text()
        (place / name).write_text(text.replace(gone, ""))
        (outcome,) = [o for o in check_release(place).outcomes if o.check == "licence"]
        assert outcome.verdict.state is State.FAIL
        assert name in outcome.verdict.reason
        (place / name).write_text(text)
    with pytest.raises(InputError, match="name begins with 'Llama'"):
        build_in(tmp_path / "b", reference_folder, licence=licence, artifacts=["Q8_0"], name="Wolf")
