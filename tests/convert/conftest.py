"""What the tests of convert share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.miniature import Shape, config, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer and a config, no weights."""
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config(Shape(), tied=False)))
    return tmp_path
