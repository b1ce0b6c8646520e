"""Each lint fires on a tokenizer broken in its way, and none on a good one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.model_spec import read_model_spec
from convert.tokenizer import read_vocabulary
from convert.tokenizer_lints import lint_tokenizer
from tests.miniature import Shape, change_json, config, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config(Shape(), tied=False)))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 260}))
    return tmp_path


def names(folder: Path) -> list[str]:
    spec = read_model_spec(folder / "config.json")
    return [lint.name for lint in lint_tokenizer(folder, spec, read_vocabulary(folder, spec))]


def lose_post_processor(folder: Path) -> None:
    change_json(folder / "tokenizer.json", post_processor=None)


def make_tags_control(folder: Path) -> None:
    path = folder / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    change_json(path, added_tokens=[{**token, "special": True} for token in added])


def end_elsewhere(folder: Path) -> None:
    change_json(folder / "generation_config.json", eos_token_id=[258])


def add_another_copy(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }} {{ tools }}")


def drop_tool_use(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}")


def test_a_good_tokenizer_has_no_findings(folder: Path) -> None:
    assert names(folder) == []


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lose_post_processor, "bos-postprocessor-lost"),
        (make_tags_control, "tool-tag-control"),
        (end_elsewhere, "eos-differs"),
        (add_another_copy, "template-copies-differ"),
        (drop_tool_use, "tool-use-template-missing"),
    ],
)
def test_each_damage_is_found_by_name(
    folder: Path, damage: Callable[[Path], None], name: str
) -> None:
    damage(folder)
    assert names(folder) == [name]
