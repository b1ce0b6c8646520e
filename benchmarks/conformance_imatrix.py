"""Is our imatrix as good as llama.cpp's? Both on the same 512-token chunks of hermes-nano.

    python -m benchmarks.conformance_imatrix [--work DIR]

llama-imatrix runs the float32 GGUF over the bundled conversations, as text, with special tokens
parsed; we run the checkpoint over the same ids, which is checked. Stock llama-quantize then makes
each type with its imatrix and with ours, and the bytes that differ are counted. They cannot be
none: the two compute activations in other orders. The yardstick is measured in the same run:
llama-imatrix on the float16 GGUF of the same model, KV cache in float32 too. Exits with 1 if ours
is off by more than `BAR` times that, over all types.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import llama_cpp_source
from convert.conversation import read_conversations
from convert.gguf_reader import read_gguf
from convert.job import convert
from convert.rendering import Tokenizer
from quantize.calibrate import calibrate
from quantize.calibration_text import BUNDLED, CHUNK_TOKENS, read_calibration_text
from quantize.importance import read_importance
from tests.peers import LlamaVocabulary

NANO = Path(__file__).parents[1] / "examples" / "hermes-nano"
TYPES = ("Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "IQ4_XS", "IQ3_M", "IQ2_M")
BAR = 1.5
TOOLS = ("llama-imatrix", "llama-quantize")


@dataclass(frozen=True)
class Row:
    """Bytes of tensor data, and how many differ from those made with their float32 imatrix."""

    target: str
    size: int
    ours: int
    float16: int
    without: int | None


def write_text(folder: Path, path: Path) -> None:
    """The bundled conversations as text, without the BOS that llama.cpp puts at the front."""
    tokenizer = Tokenizer.open(folder)
    texts = [tokenizer.render_text(c, False) for c in read_conversations(BUNDLED)]
    bos = tokenizer.special_tokens["bos_token"]
    tokenizer.close()
    path.write_text("".join(texts).removeprefix(bos), encoding="utf-8")


def check_same_ids(model: Path, text: Path) -> None:
    """Raise if llama.cpp does not read the text as the ids that we run."""
    with LlamaVocabulary(model) as vocabulary:
        ids = vocabulary.tokenize(text.read_text(encoding="utf-8"), add_special=True)
    bos = ids[0]
    chunks = read_calibration_text(NANO).chunks
    for number, chunk in enumerate(chunks):
        start = number * CHUNK_TOKENS
        if chunk != (bos, *ids[start + 1 : start + CHUNK_TOKENS]):
            raise RuntimeError(f"chunk {number} is not what llama.cpp makes of the same text")
    if len(ids) // CHUNK_TOKENS != len(chunks):
        raise RuntimeError(f"{len(chunks)} chunks here, {len(ids) // CHUNK_TOKENS} in llama.cpp")


def run_imatrix(tools: Path, model: Path, text: Path, out: Path) -> Path:
    """llama-imatrix, everything but the weights in float32."""
    command = [str(tools / "llama-imatrix"), "-m", str(model), "-f", str(text), "-o", str(out)]
    command += ["--parse-special", "--no-ppl", "-c", str(CHUNK_TOKENS), "-t", "2"]
    command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "-ngl", "0"]
    _run(command)
    return out


def quantized(tools: Path, model: Path, target: str, imatrix: Path | None) -> dict[str, bytes]:
    """Tensor data that stock llama-quantize makes."""
    out = model.with_suffix(".out")
    options = ["--imatrix", str(imatrix)] if imatrix else []
    _run([str(tools / "llama-quantize"), *options, str(model), str(out), target, "2"])
    file = read_gguf(out)
    data = {name: file.read(name) for name in file.tensors}
    out.unlink()
    return data


def differing(a: dict[str, bytes], b: dict[str, bytes]) -> int:
    """Bytes that differ between two files' tensors."""
    if a.keys() != b.keys():
        raise RuntimeError("not the same tensors")
    return sum(
        int(np.count_nonzero(np.frombuffer(a[n], np.uint8) != np.frombuffer(b[n], np.uint8)))
        for n in a
    )


def compare(tools: Path, model: Path, imatrices: tuple[Path, Path, Path], target: str) -> Row:
    """One type: theirs in float32 against ours, against theirs in float16, against none."""
    reference, ours, float16 = (quantized(tools, model, target, path) for path in imatrices)
    without = None if target[:3] == "IQ2" else quantized(tools, model, target, None)
    return Row(
        target,
        sum(map(len, reference.values())),
        differing(reference, ours),
        differing(reference, float16),
        None if without is None else differing(reference, without),
    )


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(ran.stderr or ran.stdout)[-2000:]}")


def main() -> int:
    """Calibrate both ways, quantize with both, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="where llama.cpp is built and kept between runs")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        work = options.work or folder / "peer"
        source = llama_cpp_source.fetch_source(work)
        with console.status("building llama-imatrix"):
            tools = llama_cpp_source.build_tools(source, work, TOOLS)
        convert(str(NANO), folder, ["F32", "F16"], name="nano")
        f32, f16 = folder / "nano-F32.gguf", folder / "nano-F16.gguf"
        write_text(NANO, folder / "text.txt")
        check_same_ids(f32, folder / "text.txt")
        theirs = run_imatrix(tools, f32, folder / "text.txt", folder / "f32.gguf")
        float16 = run_imatrix(tools, f16, folder / "text.txt", folder / "f16.gguf")
        ours = calibrate(str(NANO), folder / "calibration").imatrix
        rows = [compare(tools, f32, (theirs, ours, float16), target) for target in TYPES]
        relative = _relative_difference(theirs, ours), _relative_difference(theirs, float16)
    return _print(console, rows, relative, llama_cpp_source.commit(source))


def _relative_difference(a: Path, b: Path) -> float:
    """Median relative difference of the means of two files."""
    first, second = read_importance(a).means, read_importance(b).means
    if first.keys() != second.keys():
        raise RuntimeError(f"entries of one only: {sorted(first.keys() ^ second.keys())}")
    parts = [np.abs(second[n] - first[n]) / np.maximum(np.abs(first[n]), 1e-30) for n in first]
    return float(np.median(np.concatenate([part.reshape(-1) for part in parts])))


def _print(console: Console, rows: list[Row], relative: tuple[float, float], commit: str) -> int:
    table = Table("type", "bytes", "ours", "their float16", "no imatrix", "ratio")
    for row in rows:
        share = [f"{count} ({count / row.size:.3%})" for count in (row.ours, row.float16)]
        without = "needs one" if row.without is None else f"{row.without / row.size:.1%}"
        ratio = f"{row.ours / max(row.float16, 1):.2f}"
        table.add_row(row.target, str(row.size), *share, without, ratio)
    console.print(table)
    ours, float16 = sum(row.ours for row in rows), sum(row.float16 for row in rows)
    console.print(
        f"bytes unlike those of their float32 imatrix: ours {ours}, their float16 {float16}, ratio"
        f" {ours / max(float16, 1):.2f} (at most {BAR}); the means differ by {relative[0]:.1e} and"
        f" {relative[1]:.1e} (median); llama.cpp {commit}, torch {version('torch')}, transformers"
        f" {version('transformers')}, {platform.processor() or platform.machine()},"
        f" {date.today().isoformat()}"
    )
    return 0 if ours <= BAR * float16 else 1


if __name__ == "__main__":
    sys.exit(main())
