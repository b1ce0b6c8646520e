"""`hermes-quant fit` as people run it: tables at any width, JSON, cards, plots, logs, bad input."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from quantize.fit.fit import fit
from quantize.fit.table import print_report
from tests.command import command, invoke
from tests.quantize.fit.shapes import write_config

MODELS = {"8B": "RTX 4090", "70B": "2xH100 SXM5 80GB", "Mixtral 8x7B": "RTX 5090"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("Hermes-3-8B"), "8B")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_cut_at_this_width(tmp_path: Path, name: str, width: int) -> None:
    report = fit(str(write_config(tmp_path, name)), gpu=MODELS[name], max_memory="20GiB")
    out = io.StringIO()
    print_report(report, Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text
    table = [line for line in text.splitlines() if not line.startswith("  ") or "Q4_K_M" in line]
    assert any(re.search(r"Q4_K_M +\d+\.\d\d~", line) for line in table)
    assert "largest mixture that fits" in text


def test_the_answer_in_the_terminal(config: Path) -> None:
    done = invoke("fit", config, "--gpu", "RTX 4090", "--context", "32k", "--to", "FP8_DYNAMIC")
    assert done.exit_code == 0
    for words in (
        "on NVIDIA GeForce RTX 4090 (23.51 GiB usable, log): 1 x 32,768 tokens",
        "tight: KV cache",
        "FP8 on this GPU: W8A8",
        "86% of the bandwidth bound",
        "--max-model-len 32768",
        "hermes-quant quantize",
    ):
        assert words in done.stdout, words


def test_json_has_every_term_with_value_band_source_and_confidence(config: Path) -> None:
    done = invoke("fit", config, "--gpu", "2xRTX 3090", "--concurrency", 2, "--json")
    assert done.exit_code == 0, done.stdout
    data = json.loads(done.stdout)
    assert data["schema_version"] == 1
    assert (data["gpus"], data["concurrency"], data["context"]) == (2, 2, 8192)
    assert {answer["engine"] for answer in data["answers"]} == {"vllm", "llama.cpp"}
    for answer in data["answers"]:
        assert len(answer["devices"]) == 2
        for device in answer["devices"]:
            for term in device["terms"]:
                assert term["source"]
                assert term["confidence"] in ("exact", "high", "medium", "low")
                assert term["low_bytes"] <= term["bytes"] <= term["high_bytes"]
        assert answer["settings"]
        assert answer["command"]
    assert data["recommended"]


def test_a_survey_in_json(config: Path) -> None:
    done = invoke("fit", config, "--to", "Q4_K_M", "--json")
    data = json.loads(done.stdout)
    assert (data["gpu"], data["answers"]) == (None, [])
    assert {row["target"] for row in data["survey"]} == {"BF16", "Q4_K_M"}
    assert all(row["gpu"] for row in data["survey"])


@pytest.mark.parametrize("gpu", [("--gpu", "RTX 4090"), ()])
def test_markdown_is_a_table(config: Path, gpu: tuple[str, ...]) -> None:
    done = invoke("fit", config, *gpu, "--markdown")
    lines = done.stdout.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 30
    assert len({row.count("|") for row in rows}) == 1
    assert lines[0].startswith("### ")


def test_a_plot_is_a_png_of_some_size(tmp_path: Path, config: Path) -> None:
    file = tmp_path / "fit.png"
    done = invoke("fit", config, "--gpu", "RTX 4090", "--plot", file)
    assert done.exit_code == 0, done.stderr
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    assert width > 1000
    assert height > 1000
    again = tmp_path / "again.png"
    invoke("fit", config, "--gpu", "RTX 4090", "--plot", again)
    assert again.read_bytes() == data


@pytest.mark.parametrize(
    ("plot", "gpu", "message"),
    [
        ("x.pdf", ("--gpu", "RTX 4090"), "expected a name that ends in .png"),
        ("x.png", (), "nothing to draw"),
        ("none/x.png", ("--gpu", "RTX 4090"), "cannot be written"),
    ],
)
def test_a_plot_that_cannot_be(
    tmp_path: Path, config: Path, plot: str, gpu: tuple[str, ...], message: str
) -> None:
    done = invoke("fit", config, *gpu, "--plot", tmp_path / plot)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_matplotlib_the_plot_says_what_to_install(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = invoke("fit", config, "--gpu", "RTX 4090", "--plot", tmp_path / "x.png")
    assert done.exit_code == 2
    assert "pip install 'hermes-quant[plot]'" in done.stderr


def test_nothing_heavy_is_loaded_and_bad_input_is_one_line(config: Path) -> None:
    done = command("fit", config, "--gpu", "RTX 4099")
    assert done.returncode == 2
    assert done.stderr == (
        "error: --gpu 'RTX 4099' is not known; the nearest names are RTX 4090, RTX 5090, RTX 4080,"
        " or pass --gpu-mem SIZE\n"
    )
    assert done.stdout == ""


@pytest.mark.parametrize(
    "options",
    [
        ("--gpu", "RTX 4090", "--context", "1000k"),
        ("--gpu-mem", "24"),
        ("--gpu", "3xRTX 4090", "--engine", "vllm"),
        ("--gpu", "RTX 4090", "--concurrency", "0"),
        ("--max-memory", "-8GiB"),
        ("--gpu", "RTX 4090", "--engine", "sglang"),
        ("--compare", "nothing.log"),
    ],
)
def test_bad_input_exits_with_2(config: Path, options: tuple[str, ...]) -> None:
    done = invoke("fit", config, *options)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ")
