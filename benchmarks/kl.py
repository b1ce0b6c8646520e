"""Is our KL divergence llama-perplexity's? Both on the same tokens, and how long each takes.

    python -m benchmarks.kl [BASE.gguf OTHER.gguf...] [--tool llama-perplexity] [--text FILE]

Without files hermes-nano is taken, in float32 and in three types; without a tool llama.cpp's is
compiled under `--work` from the source distribution of llama-cpp-python. The tool writes its base
logits for BASE, in 16 bits, and compares each other file with them. We read the tokens from that
file, so both see the same, and score the positions it scores: the second half of each chunk. Ours
is computed twice, with 64 candidates and the tail lumped, and with the whole vocabulary. The tool
stores the base's log-probabilities in 65,536 steps over at most 16 nats (`log_softmax` in its
`perplexity.cpp`), so each is half a step off at most: a whole-vocabulary mean that is further than
that from the tool's, or 1 %, makes the exit code 1. A comparison of BASE with itself does not show
the floor, since both sides are then off alike.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import llama_cpp_source
from benchmarks.results import machine, markdown, write_section
from convert.conversation import read_conversations
from convert.job import convert
from quantize.job import quantize
from verify.distributions import kl_per_token
from verify.engines.llama_cpp import LlamaCppEngine
from verify.engines.log_probabilities import Passage, Scored

NANO = Path(__file__).parents[1] / "examples/hermes-nano"
TYPES = ["Q8_0", "Q4_K_M", "Q2_K"]
TOOL = "llama-perplexity"
FLOOR = 16 / 65535 / 2
"""What a stored log-probability of the base is off at most, in nats."""
MAGIC = b"_logits_"
CONTEXT = 512
TOP = 64
ATTEMPTS = 3
MEAN = re.compile(r"Mean\s+KLD:\s+(-?[\d.]+)")


@dataclass(frozen=True)
class Row:
    """One file against the base: mean KL in nats and seconds, by the tool and by us."""

    name: str
    theirs: float
    whole: float
    lumped: float
    seconds_theirs: float
    seconds_ours: float


def read_chunks(path: Path) -> tuple[np.ndarray, int]:
    """The tool's tokens [chunks, context], and its vocabulary's size."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise SystemExit(f"{path}: not a base file of llama-perplexity")
        context, vocabulary, chunks = np.fromfile(file, dtype="<i4", count=3).tolist()
        tokens = np.fromfile(file, dtype="<i4", count=chunks * context)
    return tokens.reshape(chunks, context), vocabulary


def run_tool(tool: Path, model: Path, base: Path, *options: str) -> tuple[str, float]:
    """Its output and its seconds."""
    command = [tool, "-m", model, "-c", CONTEXT, "-ctk", "f32", "-ctv", "f32", *options]
    command += ["--kl-divergence-base", base]
    begin = time.monotonic()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tool}: exit code {done.returncode}: {done.stderr[-500:]}")
    return done.stdout + done.stderr, time.monotonic() - begin


def measure_tool(tool: Path, model: Path, base: Path) -> tuple[float, float]:
    """Its mean KL and its seconds; asked again if its log ends early (on a busy machine it can)."""
    for _ in range(ATTEMPTS):
        output, seconds = run_tool(tool, model, base, "--kl-divergence")
        found = MEAN.search(output)
        if found is not None:
            return float(found.group(1)), seconds
    raise SystemExit(f"{tool}: no mean KLD in its output: {output[-500:]}")


def score(model: Path, passages: list[Passage], top: int) -> tuple[list[Scored], float]:
    """Our scores and the seconds they took, loading included."""
    begin = time.monotonic()
    engine = LlamaCppEngine(model, kv_type="float32")
    found = engine.score(passages, top=top)
    engine.close()
    return found, time.monotonic() - begin


def compare(base: Path, others: list[Path], tool: Path, text: Path, work: Path) -> list[Row]:
    """A row a file, the base itself first."""
    stored = work / "base.kld"
    run_tool(tool, base, stored, "-f", str(text))
    tokens, vocabulary = read_chunks(stored)
    chunks = [Passage(tuple(chunk), CONTEXT // 2 + 1) for chunk in tokens.tolist()]
    references = {top: score(base, chunks, top)[0] for top in (TOP, vocabulary)}
    rows = []
    for path in (base, *others):
        theirs, seconds = measure_tool(tool, path, stored)
        means, times = {}, {}
        for top, reference in references.items():
            asked = [
                Passage(chunk.ids, chunk.start, ours.candidates)
                for chunk, ours in zip(chunks, reference, strict=True)
            ]
            scored, times[top] = score(path, asked, top)
            kl = [kl_per_token(*pair) for pair in zip(reference, scored, strict=True)]
            means[top] = float(np.concatenate(kl).mean())
        rows.append(Row(path.name, theirs, means[vocabulary], means[TOP], seconds, times[TOP]))
    return rows


def write_text(path: Path, folder: Path) -> None:
    """The questions of a model folder's prompts, as running text."""
    lines = [
        str(message["content"])
        for file in sorted((folder / "prompts").glob("*.jsonl"))
        for conversation in read_conversations(file)[:60]
        for message in conversation.messages
        if message.get("content")
    ]
    path.write_text("\n".join(lines))


def make_files(work: Path) -> tuple[Path, list[Path]]:
    """hermes-nano in float32, and what it is compared with."""
    convert(str(NANO), work, ["F32"], name="nano")
    quantize(str(NANO), work, TYPES, name="nano")
    return work / "nano-F32.gguf", [work / f"nano-{name}.gguf" for name in TYPES]


def report(rows: list[Row], base: str) -> str:
    """The rows as markdown."""
    table = []
    for row in rows:
        means = (f"{value:.6f}" for value in (row.theirs, row.whole, row.lumped))
        times = f"{row.seconds_theirs:.1f} s", f"{row.seconds_ours:.1f} s"
        table.append([row.name, *means, *times])
    head = ["file", "llama-perplexity", "ours, whole", f"ours, top {TOP}", "its time", "ours"]
    return "\n\n".join(
        [
            markdown(head, table),
            f"Mean KL to {base} in nats a token, on the same tokens; the tool's 16-bit storage of"
            f" the base makes a floor of {FLOOR:.6f}. Times are whole commands, loading included.",
            f"{machine('llama-cpp-python')}.",
        ]
    )


def main() -> int:
    """Compare, print, decide; of hermes-nano the table also goes into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("others", type=Path, nargs="*")
    parser.add_argument("--tool", type=Path, help="llama-perplexity")
    parser.add_argument("--text", type=Path, help="default: questions of hermes-nano's prompts")
    parser.add_argument("--work", type=Path, help="where llama.cpp is built and kept between runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        text, tool = options.text or work / "text.txt", options.tool
        if tool is None:
            peer = options.work or work / "peer"
            source = llama_cpp_source.fetch_source(peer)
            tool = llama_cpp_source.build_tools(source, peer, (TOOL,)) / TOOL
        if options.text is None:
            write_text(text, NANO)
        base, others = (
            (options.base, options.others) if options.base else make_files(work / "files")
        )
        found = report(rows := compare(base, others, tool, text, work), base.name)
    print(found)
    if options.base is None:
        write_section("KL divergence", found)
    return int(any(abs(r.theirs - r.whole) > max(FLOOR, 0.01 * r.theirs) for r in rows))


if __name__ == "__main__":
    sys.exit(main())
