"""Is every byte llama.cpp's? The peer and we convert and quantize the same models; a table says.

    python -m benchmarks.conformance [--work DIR] [--quick]

Random miniatures of every family (bf16 and fp16) with real vocabularies go through llama.cpp's
converter and through ours, both given one `--metadata` file, then through `llama_model_quantize`
(from the converter's file) and through ours (from the checkpoint). All types on one family, with
and without an imatrix where both are possible; four types on the others. Exits with 1 if any
tensor's bytes differ, or any header value that is not listed in `ON_PURPOSE`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import llama_cpp_source
from convert.gguf import Field, GGUFTensor, encode_header, pad
from convert.gguf_reader import read_gguf
from quantize.ggml import library_digest
from quantize.job import quantize
from quantize.mixture_table import MIXTURES
from tests import vocabularies
from tests.families import write_family
from tests.peers import NEED_IMATRIX, llama_quantize

ON_PURPOSE: dict[str, str] = {}
"""Header keys that differ on purpose, with the reason; empty while none does."""

METADATA = {
    "general.name": "Miniature",
    "general.basename": "miniature",
    "general.finetune": "random",
    "general.version": "v1",
    "general.organization": "Conformance",
    "general.size_label": "3M",
    "general.author": "Nobody",
    "general.license.link": "https://example.org/license",
    "general.base_models": [{"name": "Base", "repo_url": "https://example.org/base"}],
    "general.tags": ["conformance", "random"],
    "general.languages": ["en"],
}
FEW = ("Q8_0", "Q6_K", "Q4_K_M", "IQ4_XS")


@dataclass(frozen=True)
class Case:
    """A miniature and the types to make of it."""

    kind: str
    vocabulary: str
    dtype: str
    shards: int = 1
    types: tuple[str, ...] = FEW


CASES = (
    Case("llama3", "llama3", "BF16", 2, tuple(MIXTURES)),
    Case("llama3", "llama3", "F16"),
    Case("llama", "llama2", "BF16"),
    Case("llama", "llama2", "F16"),
    Case("mistral", "llama2", "BF16", 2),
    Case("mistral", "llama2", "F16"),
    Case("mixtral", "llama2", "BF16", 2, (*FEW, "MXFP4_MOE")),
    Case("mixtral", "llama2", "F16"),
    Case("qwen3", "qwen2", "BF16"),
    Case("qwen3", "qwen2", "F16"),
    Case("seed_oss", "qwen2", "BF16"),
    Case("seed_oss", "qwen2", "F16"),
)


@dataclass(frozen=True)
class Row:
    """One comparison: how many tensors and header values differ, and whether whole files do."""

    case: str
    target: str
    tensors: int
    tensors_differ: int
    keys_differ: tuple[str, ...]
    whole: bool

    @property
    def good(self) -> bool:
        """Equal, or different only where that is meant."""
        return not self.tensors_differ and all(key in ON_PURPOSE for key in self.keys_differ)


def compare(case: str, target: str, theirs: Path, ours: Path) -> Row:
    """Compare two GGUF files: headers by key, tensors by bytes, and as a whole."""
    a, b = read_gguf(theirs), read_gguf(ours)
    keys = tuple(k for k in {**a.fields, **b.fields} if a.fields.get(k) != b.fields.get(k))
    names = list(dict.fromkeys([*a.tensors, *b.tensors]))
    both = a.tensors.keys() & b.tensors.keys()
    differ = sum(n not in both or a.read(n) != b.read(n) for n in names)
    return Row(case, target, len(names), differ, keys, theirs.read_bytes() == ours.read_bytes())


def write_imatrix(model16: Path, path: Path) -> dict[str, np.ndarray]:
    """A random imatrix in GGUF form for every matrix in the layers; returns its means."""
    generator = np.random.default_rng(0)
    means, tensors, data, offset = {}, [], [], 0
    for tensor in read_gguf(model16).tensors.values():
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2:
            continue
        rows = tensor.shape[0] if len(tensor.shape) > 2 else 1
        sums = generator.chisquare(1, (rows, tensor.shape[-1])).astype(np.float32)
        counts = np.full((rows, 1), 7, dtype=np.float32)
        means[tensor.name] = sums / counts
        for suffix, values in ((".in_sum2", sums), (".counts", counts)):
            tensors.append(GGUFTensor(tensor.name + suffix, "F32", values.shape, offset))
            data.append(values.tobytes() + b"\0" * (pad(values.nbytes) - values.nbytes))
            offset += len(data[-1])
    fields = [
        Field("general.type", "str", "imatrix"),
        Field("imatrix.datasets", "[str]", ["random"]),
        Field("imatrix.chunk_count", "u32", 1),
        Field("imatrix.chunk_size", "u32", 512),
    ]
    path.write_bytes(encode_header(fields, tensors) + b"".join(data))
    return means


def run_case(case: Case, source: Path, work: Path) -> Iterator[Row]:
    """Both tools on one miniature."""
    name = f"{case.kind}-{case.dtype}"
    vocabulary = work / f"vocabulary-{case.vocabulary}"
    if not vocabulary.is_dir():
        getattr(vocabularies, f"write_{case.vocabulary}")(vocabulary)
    size = {"llama3": 128256, "qwen2": 151936, "llama2": 32002}[case.vocabulary]
    model = work / name
    write_family(
        model, case.kind, vocabulary, vocab_size=size, dtype=case.dtype, shards=case.shards
    )
    metadata = work / "metadata.json"
    metadata.write_text(json.dumps(METADATA))
    peer16 = work / f"{name}.peer.gguf"
    llama_cpp_source.convert(source, model, peer16, case.dtype, metadata)
    means = write_imatrix(peer16, work / "imatrix.gguf")
    for importance in (False, True):
        out = work / f"{name}-{importance}"
        targets = [t for t in case.types if importance or t not in NEED_IMATRIX]
        if importance and case.types == FEW:
            continue
        quantize(
            str(model),
            out,
            [case.dtype, *targets],
            imatrix=work / "imatrix.gguf" if importance else None,
            metadata=metadata,
        )
        if not importance:
            yield compare(name, case.dtype, peer16, out / f"Miniature-{case.dtype}.gguf")
        for target in targets:
            theirs = work / f"{name}-{target}.peer.gguf"
            code, log = llama_quantize(
                peer16, theirs, target, imatrix=means if importance else None
            )
            if code:
                raise RuntimeError(f"llama_model_quantize failed on {name} {target}: {log[-500:]}")
            label = f"{target} + imatrix" if importance else target
            yield compare(name, label, theirs, out / f"Miniature-{target}.gguf")
            theirs.unlink()


def main() -> int:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="where the peer's source is kept between runs")
    parser.add_argument("--quick", action="store_true", help="only the first case, few types")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        source = llama_cpp_source.fetch_source(options.work or Path(scratch) / "peer")
        cases = (Case("llama3", "llama3", "BF16", 2),) if options.quick else CASES
        rows = []
        for case in cases:
            with console.status(f"{case.kind} {case.dtype}"), tempfile.TemporaryDirectory() as work:
                rows += run_case(case, source, Path(work))
        _print(console, rows, source)
    return 0 if all(row.good for row in rows) else 1


def _print(console: Console, rows: list[Row], source: Path) -> None:
    table = Table("model", "file", "tensor bytes", "header keys", "whole file")
    for row in rows:
        equal = row.tensors - row.tensors_differ
        keys = ", ".join(row.keys_differ) or "equal"
        whole = "equal" if row.whole else "differs"
        table.add_row(row.case, row.target, f"{equal}/{row.tensors} equal", keys, whole)
    console.print(table)
    converter = hashlib.sha256((source / "conversion" / "base.py").read_bytes()).hexdigest()
    console.print(
        f"{sum(row.whole for row in rows)} of {len(rows)} files equal as a whole;"
        f" llama.cpp {llama_cpp_source.commit(source)} (converter base.py sha256 {converter[:16]}),"
        f" llama-cpp-python {version('llama-cpp-python')}, libggml-base sha256"
        f" {library_digest()[:16]}, transformers {version('transformers')},"
        f" {platform.processor() or platform.machine()}, {date.today().isoformat()}"
    )
    for key, reason in ON_PURPOSE.items():
        console.print(f"differs on purpose: {key}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
