"""GPUs as rows of `gpus.csv`: what they hold, how fast they read, what they can compute.

In: `RTX 4090`, `2xH100 80GB`, or a bare size. Out: a `Gpu` and how many of it. Three sizes must not
be confused: the marketing figure, what nvidia-smi prints (`memory_mib`), and what a program is
given (`usable_mib`), which is 430 to 1,100 MiB less. Only the last decides what fits. Where a
start-up log states it, the row says `log`; otherwise it is 98 % of `memory_mib`, the smallest share
seen in a log, and the row says `estimate`. Each row names its sources.

A name matches a row that has all its words. Laptop chips and bridged or PCIe variants are rows of
their own: of several that match, the one with the fewest other words is taken, and where these have
different memory the question is handed back.
"""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from convert.errors import InputError

MIB = 1 << 20
_COUNT = re.compile(r"\s*(?:(\d+)\s*[x×*]\s*)?[\"']?(.*?)[\"']?\s*")  # noqa: RUF001
_VENDOR_WORDS = {
    "nvidia",
    "geforce",
    "amd",
    "radeon",
    "instinct",
    "intel",
    "apple",
    "google",
    "aws",
}
_MAX_COUNT = 64


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device; sizes in bytes, bandwidth in 10^9 bytes a second (None where not known)."""

    name: str
    vendor: str
    memory_bytes: int
    usable_bytes: int
    usable_basis: str
    bandwidth_gb_s: float | None
    compute_capability: str
    notes: str
    source: str
    fp8: str = "no"

    @property
    def cuda(self) -> float | None:
        """CUDA compute capability; None for other vendors and for a bare size."""
        return float(self.compute_capability) if self.vendor == "nvidia" else None


@cache
def gpus() -> tuple[Gpu, ...]:
    """Every row of gpus.csv."""
    text = (files("quantize.fit") / "gpus.csv").read_text(encoding="utf-8")
    return tuple(
        Gpu(
            name=row["name"],
            vendor=row["vendor"],
            memory_bytes=int(row["memory_mib"]) * MIB,
            usable_bytes=int(row["usable_mib"]) * MIB,
            usable_basis=row["usable_basis"],
            bandwidth_gb_s=float(row["bandwidth_gb_s"]),
            compute_capability=row["compute_capability"],
            notes=row["notes"],
            source=row["source"],
            fp8=row["fp8_native"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def gpu_of_size(usable_bytes: int, option: str) -> Gpu:
    """A device of which only the usable memory is known, as `option` gave it."""
    return Gpu(
        name=f"{usable_bytes / (1 << 30):.4g} GiB",
        vendor="",
        memory_bytes=usable_bytes,
        usable_bytes=usable_bytes,
        usable_basis=f"given by {option}",
        bandwidth_gb_s=None,
        compute_capability="",
        notes="",
        source=option,
    )


def find_gpu(text: str) -> tuple[Gpu, int, str]:
    """The GPU and count that `text` means, and a remark (empty where it was unambiguous)."""
    match = _COUNT.fullmatch(text)
    assert match is not None
    count, name = int(match[1] or 1), match[2]
    if not 1 <= count <= _MAX_COUNT:
        raise InputError(f"--gpu {text!r}: {count} devices; 1 to {_MAX_COUNT} can be planned")
    found = _matching(name)
    if not found:
        raise InputError(f"--gpu {name!r} is not known; {_nearest(name)}, or pass --gpu-mem SIZE")
    if len({gpu.memory_bytes for gpu in found}) > 1:
        names = ", ".join(_short(gpu) for gpu in found)
        raise InputError(f"--gpu {name!r} could be any of: {names}; say which")
    slowest = min(found, key=lambda gpu: (gpu.usable_bytes, gpu.bandwidth_gb_s or 0))
    others = ", ".join(_short(gpu) for gpu in found if gpu is not slowest)
    remark = f"{name!r} also matches {others}; planned for {_short(slowest)}" if others else ""
    return slowest, count, remark


def _short(gpu: Gpu) -> str:
    return " ".join(w for w in gpu.name.split() if w.lower() not in _VENDOR_WORDS) or gpu.name


def _words(text: str) -> tuple[str, ...]:
    found = re.findall(r"[a-z0-9.+]+", text.lower().replace("gb)", "gb"))
    return tuple(word for word in found if word not in _VENDOR_WORDS)


def _matching(name: str) -> Sequence[Gpu]:
    """Rows that have all the words of `name`, of those the ones with the fewest others."""
    wanted = _words(re.sub(r"(\d)\s+gb\b", r"\1gb", name.lower()))
    if not wanted:
        return ()
    scored = []
    for gpu in gpus():
        words = set(_words(gpu.name))
        if all(word in words or _is_memory(word, gpu) for word in wanted):
            scored.append((len(words - set(wanted)), gpu))
    least = min((extra for extra, _ in scored), default=0)
    return [gpu for extra, gpu in scored if extra == least]


def _is_memory(word: str, gpu: Gpu) -> bool:
    """Whether `24gb` is what people call this GPU's memory."""
    size = re.fullmatch(r"(\d+)g[ib]{0,2}", word)
    return size is not None and abs(int(size[1]) - gpu.memory_bytes / (1 << 30)) < 1.5


def _nearest(name: str) -> str:
    names = {" ".join(_words(gpu.name)): _short(gpu) for gpu in gpus()}
    wanted = " ".join(_words(name))
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.4) or list(names)[:3]
    return f"the nearest names are {', '.join(names[key] for key in close)}"
