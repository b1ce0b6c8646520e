"""Devices: names as people write them, and where the figures come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantize.fit.candidate import Candidate
from quantize.fit.fit import parse_context
from quantize.fit.gpu import find_gpu, gpus
from quantize.fit.subject import read_subject


def test_every_device_states_what_is_usable_and_why() -> None:
    assert len(gpus()) == 101
    for gpu in gpus():
        assert 0 < gpu.usable_bytes <= gpu.memory_bytes, gpu.name
        assert gpu.usable_basis == "log" or gpu.usable_basis.startswith("estimate"), gpu.name
        assert gpu.source, gpu.name
        found, count, _ = find_gpu(f"2x{gpu.name}")
        assert (found.name, count) == (gpu.name, 2)
    logged = [gpu for gpu in gpus() if gpu.usable_basis == "log" and gpu.vendor == "nvidia"]
    assert len(logged) == 15
    assert min(gpu.usable_bytes / gpu.memory_bytes for gpu in logged) >= 0.98


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("RTX 4090", "NVIDIA GeForce RTX 4090", 1),
        ('2x"H100 SXM5 80GB"', "NVIDIA H100 SXM5 80GB", 2),
        ("rtx 4090 laptop", "NVIDIA GeForce RTX 4090 Laptop", 1),
        ("4090 24GB", "NVIDIA GeForce RTX 4090", 1),
        ("8 x H200 NVL", "NVIDIA H200 NVL 141GB", 8),
        ("3090", "NVIDIA GeForce RTX 3090", 1),
    ],
)
def test_names_as_people_write_them(text: str, name: str, count: int) -> None:
    found, many, remark = find_gpu(text)
    assert (found.name, many, remark) == (name, count, "")


def test_of_two_that_match_the_slower_is_planned_and_said() -> None:
    found, count, remark = find_gpu("2xH100 80GB")
    assert (found.name, count) == ("NVIDIA H100 PCIe 80GB", 2)
    assert "H100 SXM5 80GB" in remark


@pytest.mark.parametrize(("text", "tokens"), [("32k", 32768), ("8192", 8192), ("1M", 1 << 20)])
def test_contexts_as_people_write_them(text: str, tokens: int) -> None:
    assert parse_context(text) == tokens


def test_candidates_say_where_they_are(miniature: Path) -> None:
    found = read_subject(str(miniature), ["Q8_0"])
    source, made = found.candidates
    assert isinstance(source, Candidate)
    assert (source.place, made.place) == (str(miniature), None)
