"""One finished release, which tests copy before they damage it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.verify.release.releases import build_in


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, reference_folder: Path) -> Path:
    """The folder of a build: its recipe, its key, and `dist`."""
    folder = tmp_path_factory.mktemp("release")
    assert build_in(folder, reference_folder).exit_code == 0
    return folder


@pytest.fixture
def dist(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished release, without its work folder."""
    ignored = shutil.ignore_patterns(".build")
    return Path(shutil.copytree(finished / "dist", tmp_path / "dist", ignore=ignored))
