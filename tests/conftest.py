"""What all tests share: our own warnings are errors, one torch thread, no network.

Generated examples are the same on every run; `pytest --hypothesis-profile explore` looks further.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when an OpenMP library is loaded

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.miniature import write_checkpoint

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("repeatable")

OURS = r"(convert|quantize|verify|hermes_quant)(\..*)?$"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", f"error:::{OURS}")
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The command line keeps references in the user's cache folder; tests have one of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 checkpoint of two shards, read by many tests and changed by none."""
    return write_checkpoint(tmp_path_factory.mktemp("source") / "miniature", shards=2)
