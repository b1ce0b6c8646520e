"""Is every byte llm-compressor's? Every data-free scheme, on miniatures of all dense families.

    python -m benchmarks.conformance_vllm [--quick]

For each family, source dtype (bf16, fp16, fp32) and number of shards, our one run makes every
target, `model_free_ptq` each of them on its own, and all files of both folders are compared. Exits
with 1 if one differs. Mixtral is left out: that tool does not know its routers from its experts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from quantize.compressed_table import TARGETS
from quantize.job import quantize
from tests.families import CONFIGS, write_family
from tests.miniature import write_tokenizer
from tests.peers import model_free_ptq

DENSE = tuple(kind for kind in CONFIGS if kind != "mixtral")
VOCABULARY = 320


def differing_files(ours: Path, theirs: Path) -> list[str]:
    """Names of files that only one folder has, or that differ; our sidecar apart."""
    names = {
        str(path.relative_to(folder))
        for folder in (ours, theirs)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "hermes-quant.json"
    }

    def same(name: str) -> bool:
        a, b = ours / name, theirs / name
        return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()

    return sorted(name for name in names if not same(name))


def run_case(kind: str, dtype: str, shards: int, work: Path) -> dict[str, list[str]]:
    """Differing files by target."""
    vocabulary = work / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    source = write_family(
        work / "source", kind, vocabulary, vocab_size=VOCABULARY, dtype=dtype, shards=shards
    )
    quantize(str(source), work / "ours", list(TARGETS), name="m")
    found = {}
    for target in TARGETS:
        with Path(os.devnull).open("w") as null, contextlib.redirect_stderr(null):
            theirs = model_free_ptq(source, work / f"theirs-{target}", target)
        found[target] = differing_files(work / "ours" / f"m-{target}", theirs)
    return found


def main() -> int:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one family, bf16")
    quick = parser.parse_args().quick
    console = Console()
    table = Table("family", "dtype", "shards", "folders equal", "differs")
    folders = equal = 0
    for kind in DENSE[:1] if quick else DENSE:
        for dtype in ("BF16",) if quick else ("BF16", "F16", "F32"):
            for shards in (1, 2):
                with tempfile.TemporaryDirectory() as work:
                    found = run_case(kind, dtype, shards, Path(work))
                differing = {target: names for target, names in found.items() if names}
                folders += len(found)
                equal += len(found) - len(differing)
                words = [f"{target}: {', '.join(names)}" for target, names in differing.items()]
                score = f"{len(found) - len(differing)} of {len(found)}"
                table.add_row(kind, dtype, str(shards), score, "\n".join(words))
    console.print(table)
    console.print(
        f"{equal} of {folders} folders equal in every file ({', '.join(TARGETS)}); llmcompressor"
        f" {version('llmcompressor')}, compressed-tensors {version('compressed-tensors')}, torch"
        f" {version('torch')}, {platform.processor() or platform.machine()},"
        f" {date.today().isoformat()}"
    )
    return 0 if equal == folders else 1


if __name__ == "__main__":
    sys.exit(main())
