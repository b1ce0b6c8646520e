"""YAML that people write: every mistake has its line, and a misspelt key its right spelling."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from convert.errors import InputError
from convert.yaml_file import read_yaml


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int
    colour: str = "red"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    inner: Inner | None = None
    rows: tuple[Inner, ...] = ()
    sizes: dict[str, int] = Field(default={})


def mistake(tmp_path: Path, text: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_yaml(path, Outer)
    return str(caught.value).removeprefix(f"{path}:")


def test_a_right_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("title: t\nrows:\n  - number: 1\n  - {number: 2, colour: blue}\n")
    assert [row.number for row in read_yaml(path, Outer).rows] == [1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: t\ninnr: {number: 1}\n", "2: innr: unknown key; did you mean 'inner'?"),
        ("title: t\ninner:\n  number: 1\n  color: x\n", "4: inner.color: unknown key; did you"),
        ("title: t\nrows:\n  - number: 1\n  - nmber: 2\n", "4: rows.1.nmber: unknown key"),
        ("title: t\nrows:\n  - number: 1\n  - number: two\n", "4: rows.1.number: Input should be"),
        ("title: t\nsizes:\n  a: 1\n  b: x\n", "4: sizes.b: Input should be a valid integer"),
        ("rows: []\n", "1: title: Field required"),
        ("title: [t\n", "2: not YAML: "),
        ("title: !!python/object/apply:os.getcwd []\n", "1: not YAML: could not determine"),
        ("- 1\n", " expected `key: value` lines, found list"),
        ("", " expected `key: value` lines, found NoneType"),
    ],
)
def test_a_mistake_has_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert mistake(tmp_path, text).startswith(expected)


def test_all_mistakes_are_counted_and_the_unknown_key_comes_first(tmp_path: Path) -> None:
    found = mistake(tmp_path, "titel: t\ninner: {}\n")
    assert found.startswith("1: titel: unknown key; did you mean 'title'?")
    assert found.endswith("(and 2 more)")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(path, Outer)
