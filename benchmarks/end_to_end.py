"""How long the whole way takes: the peers' own tools and ours, on one machine in one run.

    python -m benchmarks.end_to_end [--model 3B] [--rounds 3] [--work DIR] [--llama-quantize BIN]

On random weights in a real shape: llama.cpp's converter, then `llama_model_quantize` with all
threads once for each type; llm-compressor's `model_free_ptq`; and ours, which makes each artifact
alone and all five in one run. Rounds alternate between the tools; the table has medians and ratios,
peak memory and bytes moved, both sides measured the same way (`measure.py`). `--llama-quantize`
adds builds of the peer's own command, for example one with `-march=native`. Before each command,
outside the clock, what was written before is flushed and its input is read once: caches are warm. A
command has ended when its output is on the disk; what the peers leave to the kernel is flushed on
the clock and told apart.
What the run must move at the least is measured too: reading the source and writing as many bytes
as the outputs have. Each command's figures are told on stderr as they are found, and the results
are written to RESULTS.md, which is not edited by hand, after every round.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import llama_cpp_source
from benchmarks.measure import Measured, measure
from benchmarks.random_model import SHAPES, write_model
from benchmarks.results import machine, markdown, write_section
from convert.plan import PlannedFile
from convert.staged_files import StagedFiles

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M")
SET = ("FP8_DYNAMIC", *TYPES)
THREADS = os.cpu_count() or 1
SCALING = tuple(sorted({1, 2} - {THREADS}))
"""Numbers of threads that the set is made with, besides all."""
BARS = {"Q4_K_M, from safetensors": 6, "FP8_DYNAMIC": 8, "the set": 8}
"""How many times faster than the peers we mean to be."""
_CHUNK_BYTES = 1 << 22
_PEER_QUANTIZE = """
import sys, llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.nthread, p.ftype = int(sys.argv[4]), int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))
"""
_FILE_TYPES = {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15}
_PEER_FP8 = """
import sys
from llmcompressor import model_free_ptq
ignore = ["lm_head", "model.embed_tokens"]
model_free_ptq(sys.argv[1], sys.argv[2], scheme="FP8_DYNAMIC", ignore=ignore, device="cpu")
"""


class Runs(dict[str, list[Measured]]):
    """What every command took, round by round; each figure is told as it comes in."""

    def add(self, what: str, found: Measured) -> None:
        """Keep one figure of the command called `what`."""
        self.setdefault(what, []).append(found)
        print(f"{what}: {found.seconds:.1f} s, {found.peak_bytes / 1e9:.2f} GB", file=sys.stderr)


def ours(model: Path, work: Path, targets: tuple[str, ...], threads: int = THREADS) -> Measured:
    """One run of ours that makes `targets`."""
    out = work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    settle(model.glob("*.safetensors"))
    words = [word for target in targets for word in ("--to", target)]
    command = [sys.executable, "-m", "hermes_quant", "quantize", str(model), "--out", str(out)]
    return measure([*command, *words, "--name", "m", "--threads", str(threads)], out=out)


def run_round(model: Path, work: Path, source: Path, binaries: list[Path], runs: Runs) -> None:
    """Every command once, ours between the peers'."""
    peer16 = work / "peer-BF16.gguf"
    converter = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(model)]
    settle(model.glob("*.safetensors"))
    runs.add(
        "converter",
        measure([*converter, "--outtype", "bf16", "--outfile", str(peer16)], out=peer16),
    )
    for target in TYPES:
        made = work / "peer.gguf"
        number, threads = str(_FILE_TYPES[target]), str(THREADS)
        settle([peer16])
        script = [sys.executable, "-c", _PEER_QUANTIZE, str(peer16), str(made), number, threads]
        runs.add(f"llama {target}", measure(script, out=made))
        for binary in binaries:
            command = [str(binary), str(peer16), str(made), target, threads]
            settle([peer16])
            libraries = {"LD_LIBRARY_PATH": str(binary.parent)}
            runs.add(f"{binary} {target}", measure(command, libraries, made))
        made.unlink()
        runs.add(f"ours {target}", ours(model, work, (target,)))
    peer16.unlink()
    runs.add("ours set", ours(model, work, SET))
    runs.add("floor", floor(model, work))
    for threads in SCALING:
        runs.add(f"ours set, {threads} threads", ours(model, work, SET, threads=threads))
    runs.add("ours FP8_DYNAMIC", ours(model, work, ("FP8_DYNAMIC",)))
    shutil.rmtree(work / "ours")
    settle(model.glob("*.safetensors"))
    fp8 = work / "peer-fp8"
    runs.add(
        "model_free_ptq", measure([sys.executable, "-c", _PEER_FP8, str(model), str(fp8)], out=fp8)
    )
    shutil.rmtree(fp8)


def floor(model: Path, work: Path) -> Measured:
    """Reading every weight and, at once, writing and flushing as many bytes as the set has."""
    size = sum(path.stat().st_size for path in (work / "ours").rglob("*") if path.is_file())
    shards = list(model.glob("*.safetensors"))
    settle(shards)
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(_read_all, shards)
        pool.submit(_write_zeros, work / "floor", size).result()
        reading.result()
    seconds = time.monotonic() - begin
    (work / "floor" / "zeros").unlink()
    return Measured(seconds, 0, sum(path.stat().st_size for path in shards), size)


def settle(inputs: Iterable[Path]) -> None:
    """Flush what others wrote and bring the input into the kernel's cache."""
    os.sync()
    _read_all(inputs)


def _read_all(paths: Iterable[Path]) -> None:
    buffer = bytearray(_CHUNK_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _write_zeros(folder: Path, size: int) -> None:
    files, chunk = StagedFiles(folder), memoryview(bytes(_CHUNK_BYTES))
    files.create([PlannedFile("zeros", b"", size)])
    for offset in range(0, size, _CHUNK_BYTES):
        files.write("zeros", chunk[: size - offset], offset)
    files.sync()
    files.close()


def median(runs: list[Measured]) -> Measured:
    """The median of each figure."""
    return Measured(
        statistics.median(run.seconds for run in runs),
        int(statistics.median(run.peak_bytes for run in runs)),
        int(statistics.median(run.read_bytes for run in runs)),
        int(statistics.median(run.written_bytes for run in runs)),
        statistics.median(run.flush_seconds for run in runs),
    )


def rows(found: dict[str, Measured], binaries: list[Path]) -> list[tuple[str, Measured, Measured]]:
    """(work, the peers' way, ours) of every line of the table."""
    converter = found["converter"]
    table = []
    for target in TYPES:
        mine = found[f"ours {target}"]
        table.append((f"{target}, from safetensors", converter + found[f"llama {target}"], mine))
        for binary in binaries:
            peer = converter + found[f"{binary} {target}"]
            table.append((f"{target}, against {binary.parent.parent.name}", peer, mine))
    table.append(("FP8_DYNAMIC", found["model_free_ptq"], found["ours FP8_DYNAMIC"]))
    peers = converter + found["model_free_ptq"]
    for target in TYPES:
        peers += found[f"llama {target}"]
    table.append(("the set", peers, found["ours set"]))
    return table


def report(
    name: str, found: dict[str, Measured], binaries: list[Path], rounds: int, load: float
) -> str:
    """The results as markdown."""
    table, flushing = [], 0.0
    for work, peer, mine in rows(found, binaries):
        both = peer, mine
        table.append(
            [
                work,
                *(f"{m.seconds:.1f} s" for m in both),
                f"**{peer.seconds / mine.seconds:.1f}**",
                f"{BARS[work]}" if work in BARS else "",
                *(f"{m.peak_bytes / 1e9:.2f} GB" for m in both),
                *(f"{m.read_bytes / 1e9:.1f} GB" for m in both),
                *(f"{m.written_bytes / 1e9:.1f} GB" for m in both),
            ]
        )
        flushing = max(flushing, peer.flush_seconds / peer.seconds)
    head = ["work", "peers", "ours", "times faster", "bar"]
    head += [
        f"{whose} {what}" for what in ("memory", "read", "wrote") for whose in ("they:", "we:")
    ]
    whole, least = found["ours set"].seconds, found["floor"].seconds
    scaling = [
        f"{threads} of them {found[f'ours set, {threads} threads'].seconds:.1f} s"
        f" ({found[f'ours set, {threads} threads'].seconds / whole:.2f} times as long)"
        for threads in SCALING
    ]
    shape = SHAPES[name].shape
    return "\n\n".join(
        [
            f"{shape.layers} layers, hidden {shape.hidden}, intermediate {shape.intermediate},"
            f" vocabulary {shape.vocab}, bf16, random weights. The set is {', '.join(SET)}.",
            markdown(head, table),
            f"Flushing what a peer left to the kernel took at most {100 * flushing:.0f} % of its"
            f" time. The set takes all {THREADS} threads {whole:.1f} s, {', '.join(scaling)}."
            " Reading the source and writing as many bytes as the set has, at once, takes"
            f" {least:.1f} s, {100 * least / whole:.0f} % of our time.",
            f"Medians of {rounds}; {machine('llama-cpp-python', 'llmcompressor', 'torch')}; load"
            f" before the run {load:.1f}.",
        ]
    )


def main() -> int:
    """Measure, print, and write each model's section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=SHAPES, help="default: 3B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where models and outputs go")
    parser.add_argument("--llama-quantize", type=Path, action="append", default=[])
    options = parser.parse_args()
    binaries = [path.resolve() for path in options.llama_quantize]
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        work = options.work or Path(scratch)
        source = llama_cpp_source.fetch_source(work / "peer")
        for name in options.model or ["3B"]:
            model = write_model(work / name, name)
            runs, load = Runs(), os.getloadavg()[0]
            for done in range(1, options.rounds + 1):
                run_round(model, Path(scratch), source, binaries, runs)
                found = {what: median(measured) for what, measured in runs.items()}
                text = report(name, found, binaries, done, load)
                write_section(f"From checkpoint to artifacts: {name}", text)
            print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
