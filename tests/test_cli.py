"""The command line: exit codes, one-line errors, JSON, dry runs, and nothing heavy for --help."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import gguf
import pytest
import torch

from convert.run import RESUMABLE
from tests.command import command, invoke
from tests.miniature import Shape, write_checkpoint

HEAVY = (
    "torch",
    "transformers",
    "llama_cpp",
    "numpy",
    "llmcompressor",
    "huggingface_hub",
    "jinja2",
)

TARGETS = ["FP8_DYNAMIC", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "F32", "F16", "BF16"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], ["quantize", "--help"], ["verify", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, hermes_quant\n"
        f"sys.argv = ['hermes-quant', *{arguments!r}]\n"
        "try:\n    hermes_quant.main()\n"
        "except SystemExit as leave:\n    assert not leave.code, leave.code\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text, _, loaded = done.stdout.partition("LOADED")
    assert "hermes-quant" in text or "Usage" in text
    assert not {*HEAVY} & {*loaded.split()}
    rooms = ("convert", "quantize", "verify")
    assert not [name for name in loaded.split() if name.split(".")[0] in rooms]


def test_the_installed_command_is_this_one() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "hermes-quant", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"hermes-quant \d+\.\d+\.\d+\n", done.stdout)


def test_quantize_prints_what_it_made_and_exits_0(tmp_path: Path, miniature: Path) -> None:
    done = command("quantize", miniature, "--out", tmp_path, "--to", "Q8_0", "--to", "BF16")
    assert (done.returncode, done.stderr) == (0, "")
    for path in tmp_path.glob("*.gguf"):
        assert f"{path.name}" in done.stdout
        assert f"{path.stat().st_size:,}" in done.stdout
    again = command("quantize", miniature, "--out", tmp_path, "--to", "Q8_0")
    assert again.returncode == 0
    assert "already there" in again.stdout


def test_order_and_duplicates_of_targets(tmp_path: Path, miniature: Path) -> None:
    targets = ["Q6_K", "FP8_DYNAMIC", "Q6_K", "BF16", "FP8_DYNAMIC"]
    words = [word for target in targets for word in ("--to", target)]
    done = invoke("quantize", miniature, "--out", tmp_path, "--name", "m", *words, "--json")
    assert done.exit_code == 0, done.output
    names = [artifact["name"] for artifact in json.loads(done.stdout)["artifacts"]]
    assert names == ["m-Q6_K.gguf", "m-FP8_DYNAMIC", "m-BF16.gguf"]


def test_a_mixture_of_one_s_own_and_one_that_fits_a_size(tmp_path: Path, miniature: Path) -> None:
    recipe = tmp_path / "agent.yaml"
    recipe.write_text("name: AGENT\ndefault: Q4_K\n")
    words = ["--to", recipe, "--fit-bytes", "0.5MiB", "--bits-per-weight", "6", "--name", "m"]
    done = invoke("quantize", miniature, "--out", tmp_path, *words)
    assert done.exit_code == 0, done.output
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.gguf")}
    assert sizes.keys() == {"m-AGENT.gguf", "m-FIT_512KIB.gguf", "m-BPW_6.gguf"}
    assert sizes["m-FIT_512KIB.gguf"] <= 2**19
    assert "sum of relative squared errors" in done.stdout


def test_merge_says_what_it_wrote(tmp_path: Path, miniature: Path) -> None:
    words = ["--to", "BF16", "--name", "m", "--split-max-size", "600kB"]
    assert invoke("convert", miniature, "--out", tmp_path, *words).exit_code == 0
    first = next((tmp_path / "m-BF16").glob("*-00001-of-*.gguf"))
    done = invoke("merge", first, "--out", tmp_path / "whole.gguf")
    assert done.exit_code == 0, done.output
    assert f"{(tmp_path / 'whole.gguf').stat().st_size:,} bytes" in done.stdout
    again = invoke("merge", first, "--out", tmp_path / "whole.gguf", "--json")
    assert (again.exit_code, again.stdout) == (2, "")


def test_json_of_a_run_agrees_with_the_files(tmp_path: Path, miniature: Path) -> None:
    words = [word for target in TARGETS for word in ("--to", target)]
    done = invoke("quantize", miniature, "--out", tmp_path, "--name", "m", *words, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["schema_version"] == 1
    for artifact in report["artifacts"]:
        for file in artifact["files"]:
            assert (tmp_path / file["path"]).stat().st_size == file["size_bytes"]
    counted = gguf.GGUFReader(tmp_path / "m-BF16.gguf").tensors
    total = sum(int(t.n_elements) for t in counted if t.name != "rope_freqs.weight")
    assert report["parameters"] == total


@pytest.mark.parametrize("verb", ["quantize", "convert"])
def test_a_dry_run_knows_every_size_and_writes_nothing(
    tmp_path: Path, miniature: Path, verb: str
) -> None:
    targets = TARGETS if verb == "quantize" else ["BF16", "F16", "F32"]
    words = [word for target in targets for word in ("--to", target)]
    out = tmp_path / "out"
    planned = invoke(verb, miniature, "--out", out, *words, "--name", "m", "--dry-run", "--json")
    assert planned.exit_code == 0, planned.output
    assert not out.exists()
    report = json.loads(planned.stdout)
    assert report["artifacts"] == []
    printed = invoke(verb, miniature, "--out", out, *words, "--name", "m", "--dry-run")
    assert not out.exists()
    assert invoke(verb, miniature, "--out", out, *words, "--name", "m").exit_code == 0
    assert len(report["planned"]) == len(targets)
    sizes = 0
    for artifact in report["planned"]:
        for path, size in artifact["files"].items():
            assert (out / path).stat().st_size == size, path
        sizes += artifact["size_bytes"]
        assert f"{artifact['size_bytes']:,}" in printed.stdout
    assert report["write_bytes"] == sizes
    data = [p for p in out.rglob("*") if p.is_file() and not p.name.endswith("hermes-quant.json")]
    assert report["disk_bytes"] == sum(path.stat().st_size for path in data)
    tensors = sum(path.stat().st_size for path in miniature.glob("*.safetensors"))
    assert 0 < tensors - report["read_bytes"] < 20_000, "the headers of two shards"
    for key in ("read_bytes", "write_bytes", "disk_bytes"):
        assert f"{report[key]:,}" in printed.stdout.replace("\n", " ")


def bad_inputs(tmp_path: Path) -> dict[str, list[object]]:
    source = write_checkpoint(tmp_path / "bad", shape=Shape(layers=1), shards=2)
    (source / "model-00002-of-00002.safetensors").unlink()
    (tmp_path / "empty.gguf").write_bytes(b"")
    return {
        "quantize bad --out o --to Q8_0": ["missing", "model-00002-of-00002.safetensors"],
        "convert bad --out o --to BF16": ["missing", "model-00002-of-00002.safetensors"],
        "inspect bad": ["missing", "model-00002-of-00002.safetensors"],
        "inspect empty.gguf": ["empty.gguf", "not a GGUF file"],
        "inspect none": ["'none': no such folder", "owner/name@revision"],
        "quantize bad --out o --to Q3_K_XXL": ["'Q3_K_XXL'", "--to takes FP8_DYNAMIC, FP8_BLOCK"],
        "convert bad --out o --to Q8_0": ["'Q8_0'", "--to takes F32, F16, BF16"],
        "quantize bad --out o --to q8_0": ["unknown target 'q8_0'"],
    }


def test_bad_input_is_one_line_on_stderr_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line, found in bad_inputs(tmp_path).items():
        for more in ([], ["--json"]):
            done = invoke(*line.split(), *more)
            assert done.exit_code == 2, line
            assert done.stdout == ""
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1, done.stderr
            for part in found:
                assert str(part) in done.stderr, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "empty.gguf"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "quantize",
        "quantize m",
        "quantize m --to Q8_0",
        "inspect",
        "inspect a --fast",
    ],
)
def test_bad_usage_is_exit_2(line: str) -> None:
    done = invoke(*line.split())
    assert done.exit_code == 2
    assert "Usage" in done.output


def test_a_hostile_name_stays_on_its_line(tmp_path: Path) -> None:
    name = "model.x\n\x1b[2J\ud800.weight".encode("utf-8", "replace").decode()
    edit = {name: torch.zeros(4)}
    source = write_checkpoint(tmp_path / "s", shape=Shape(layers=1), edit=edit)
    done = invoke("quantize", source, "--out", tmp_path / "o", "--to", "Q8_0")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert r"model.x\n\x1b[2J?.weight" in done.stderr


def test_an_error_of_our_own_keeps_its_traceback_and_exits_4() -> None:
    code = (
        "import sys, convert.inspection, hermes_quant\n"
        "def broken(reference): raise ZeroDivisionError('our mistake')\n"
        "convert.inspection.inspect = broken\n"
        "sys.argv = ['hermes-quant', 'inspect', 'x']\n"
        "hermes_quant.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError: our mistake" in done.stderr


def test_ctrl_c_is_exit_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    shape = Shape(hidden=1024, intermediate=4096, layers=3)
    source, out = write_checkpoint(tmp_path / "s", shape=shape), tmp_path / "out"
    words = [sys.executable, "-m", "hermes_quant", "quantize", str(source), "--out", str(out)]
    process = subprocess.Popen(
        [*words, "--to", "Q4_K_M", "--to", "Q5_K_M"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    journals = out / ".hermes-quant-staging"
    while process.poll() is None and not any(
        path.stat().st_size > 1000 for path in journals.glob("*.journal")
    ):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stderr == f"interrupted; {RESUMABLE}\n"
    assert [path.name for path in out.iterdir()] == [journals.name]
    again = command(*words[3:], "--to", "Q4_K_M", "--to", "Q5_K_M")
    assert again.returncode == 0
    assert again.stderr == ""
    assert {path.name for path in out.glob("*.gguf")} == {"s-Q4_K_M.gguf", "s-Q5_K_M.gguf"}
    assert not journals.exists()


def test_warnings_go_to_stderr_and_leave_the_exit_code(tmp_path: Path) -> None:
    shape = Shape(layers=1, intermediate=288)
    source = write_checkpoint(tmp_path / "s", shape=shape, dtype="F32")
    done = invoke("quantize", source, "--out", tmp_path, "--to", "Q4_K_M", "--to", "F16")
    assert done.exit_code == 0
    assert "warning: s-Q4_K_M.gguf: 1 tensors have rows that do not divide into Q" in done.stderr
    assert re.search(r"warning: s-F16.gguf: [\d,]+ values changed; F16 does not hold", done.stderr)
    assert "warning:" not in done.stdout


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_no_number_is_cut_off_by_a_narrow_terminal(
    tmp_path: Path, miniature: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    name = "Hermes-3-Llama-3.1-70B-with-a-long-name-that-fills-the-whole-line"
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ["quantize", miniature, "--out", tmp_path, "--name", name, "--to", "Q8_0", "--dry-run"]
    piped, terminal = invoke(*words).stdout, on_a_terminal(words, columns)
    size = json.loads(invoke(*words, "--json").stdout)["write_bytes"]
    assert f"{name}-Q8_0.gguf" in piped
    for shown in (piped, terminal):
        assert f"{size:,}" in shown.split("read ")[0]
        assert "\u2026" not in shown


def on_a_terminal(words: list[object], columns: int) -> str:
    """The command's output on a pseudo terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "hermes_quant", *map(str, words)]
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    out = b""
    with contextlib.suppress(OSError):  # the terminal closes
        while chunk := os.read(ours, 65536):
            out += chunk
    os.close(ours)
    assert process.wait() == 0, out
    return out.decode()


def test_progress_on_a_terminal_tells_rate_and_time_left(tmp_path: Path) -> None:
    shape = Shape(hidden=1024, intermediate=4096, layers=3)
    source = write_checkpoint(tmp_path / "s", shape=shape)
    targets = ["--to", "Q4_K_M", "--to", "Q5_K_M"]
    shown = on_a_terminal(["quantize", source, "--out", tmp_path / "out", *targets], 200)
    pattern = r"model\.layers\.\d\S+ \S+ [\d.]+/[\d.]+ MB [\d.]+ [kM]B/s \d:\d\d:\d\d"
    assert re.search(pattern, re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown)), shown


def test_force_replaces(tmp_path: Path, miniature: Path) -> None:
    (tmp_path / "m-BF16.gguf").write_text("mine")
    words = ["quantize", miniature, "--out", tmp_path, "--name", "m", "--to", "BF16"]
    refused = invoke(*words)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert (tmp_path / "m-BF16.gguf").read_text() == "mine"
    assert invoke(*words, "--force").exit_code == 0
    assert (tmp_path / "m-BF16.gguf").read_bytes()[:4] == b"GGUF"
