"""Clean checkpoints by scheme, each made once; a test that breaks one gets its own copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.verify.lint.checkpoints import make

MakeClean = Callable[[str], Path]


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> MakeClean:
    """The clean checkpoint of a scheme; read only."""
    made: dict[str, Path] = {}

    def of(scheme: str) -> Path:
        if scheme not in made:
            made[scheme] = make(scheme, tmp_path_factory.mktemp(scheme))
        return made[scheme]

    return of


@pytest.fixture
def copy(clean: MakeClean, tmp_path: Path) -> MakeClean:
    """A copy of it, to be broken."""
    return lambda scheme: Path(shutil.copytree(clean(scheme), tmp_path / scheme))
