"""Who made it: the card, the repository, the --metadata file, --name; never the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.authorship import read_authorship
from convert.errors import CheckpointError, InputError

CARD = """---
model-index:
- name: Hermes-9-Llama-3.1-8B
license: llama3
tags: [Llama-3, instruct]
language: [en]
base_model: meta-llama/Meta-Llama-3.1-8B
datasets: [teknium/open-hermes]
---
# A card
"""


def texts(folder: Path, **arguments: object) -> dict[str, object]:
    fields = read_authorship(folder, **arguments).fields("8.0B")  # type: ignore[arg-type]
    return {field.key: field.value for field in fields}


def test_the_card_s_front_matter(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    assert texts(tmp_path) == {
        "general.name": "Hermes-9-Llama-3.1-8B",
        "general.size_label": "8.0B",
        "general.license": "llama3",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Meta Llama 3.1 8B",
        "general.base_model.0.organization": "Meta Llama",
        "general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Meta-Llama-3.1-8B",
        "general.dataset.count": 1,
        "general.dataset.0.name": "Open Hermes",
        "general.dataset.0.organization": "Teknium",
        "general.dataset.0.repo_url": "https://huggingface.co/teknium/open-hermes",
        "general.tags": ("Llama-3", "instruct"),
        "general.languages": ("en",),
    }


def test_norwegian_is_a_language_and_a_tab_is_two_spaces(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlanguage:\n- en\n- no\nlicense:\t\tmit\n---\n")
    assert texts(tmp_path)["general.languages"] == ("en", "no")
    assert texts(tmp_path)["general.license"] == "mit"


def test_a_card_that_would_fill_the_memory(tmp_path: Path) -> None:
    levels = ["a0: &a0 {k: 1}"]
    levels += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 3)]
    (tmp_path / "README.md").write_text("\n".join(["---", *levels, "---", ""]))
    with pytest.raises(CheckpointError, match=r"README\.md: .* a reference"):
        read_authorship(tmp_path)
    (tmp_path / "README.md").write_text("---\n" + "a:\n" * 500_000 + "---\n")
    with pytest.raises(CheckpointError, match=r"README\.md: .*1500000 characters"):
        read_authorship(tmp_path)


def test_the_file_wins_over_the_card_and_the_name_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({"general.name": "F", "general.quantized_by": "Us"}))
    assert texts(tmp_path, metadata=path)["general.name"] == "F"
    found = texts(tmp_path, metadata=path, name="N")
    assert (found["general.name"], found["general.quantized_by"]) == ("N", "Us")


def test_the_repository_and_its_revision_are_the_source(tmp_path: Path) -> None:
    found = texts(tmp_path, repo="a/b", revision="c0ffee")
    assert found["general.source.repo_url"] == "https://huggingface.co/a/b"
    assert found["general.source.url"] == "https://huggingface.co/a/b/tree/c0ffee"


def test_nothing_is_taken_from_the_folder_s_name(tmp_path: Path) -> None:
    folder = tmp_path / "Secret-Folder-7B"
    folder.mkdir()
    assert texts(folder) == {"general.size_label": "8.0B"}


def test_a_card_with_broken_front_matter_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.raises(CheckpointError, match=r"README\.md: the front matter"):
        read_authorship(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        {"general.nmae": "x"},
        {"general.name": 7},
        {"general.base_models": "x"},
        {"general.base_models": [{"nmae": "x"}]},
        {"general.tags": []},
    ],
)
def test_a_metadata_file_with_an_unknown_or_ill_typed_key(
    tmp_path: Path, data: dict[str, object]
) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"metadata\.json: general\."):
        read_authorship(tmp_path, metadata=path)


def test_a_metadata_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_authorship(tmp_path, metadata=tmp_path / "none.json")
