"""Tests here start real servers, which takes minutes: they run only when asked for by mark."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVER_PYTHON = Path(os.environ.get("HERMES_QUANT_VLLM", ROOT / ".venv-vllm/bin/python"))
"""The interpreter of the environment that vLLM is installed in."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "vllm" not in config.getoption("-m"):
        reason = "starts a real vLLM server: `make vllm` runs it"
    elif not SERVER_PYTHON.is_file():
        reason = f"{SERVER_PYTHON} is absent: `make vllm` makes that environment"
    else:
        return
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.skip(reason=reason))
