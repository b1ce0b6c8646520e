"""vLLM's coefficients by version: the rows of `vllm_versions.csv`.

What changes between versions is measured, not derived: the bytes the sampler takes a logit, what
lies outside torch, whether CUDA graphs are subtracted before the cache. A row holds from its
version on, until the next, and names the logs it was measured on. A newer vLLM is a new row.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from convert.errors import InputError

PLANNED_VERSION = "0.33"
"""The newest version whose code was read; plans are made for it."""


@dataclass(frozen=True, slots=True)
class Version:
    """A row of vllm_versions.csv: coefficients and where they were measured."""

    since: str
    counts_graphs: bool
    utilization: float
    sampler_bytes: float
    forward_intermediate: float
    forward_hidden: float
    outside_mib: tuple[int, int, int]
    parallel_mib: tuple[int, int, int]
    activation_band: float
    confidence: str
    source: str
    decode_efficiency: float
    decode_source: str


@cache
def versions() -> tuple[Version, ...]:
    """Every row of vllm_versions.csv, oldest first."""
    text = (files("quantize.fit") / "vllm_versions.csv").read_text(encoding="utf-8")

    def band(row: dict[str, str], name: str) -> tuple[int, int, int]:
        return int(row[f"{name}_low_mib"]), int(row[f"{name}_mib"]), int(row[f"{name}_high_mib"])

    return tuple(
        Version(
            since=row["since"],
            counts_graphs=row["counts_graphs"] == "yes",
            utilization=float(row["utilization"]),
            sampler_bytes=float(row["sampler_bytes"]),
            forward_intermediate=float(row["forward_intermediate"]),
            forward_hidden=float(row["forward_hidden"]),
            outside_mib=band(row, "non_torch"),
            parallel_mib=band(row, "parallel"),
            activation_band=float(row["activation_band"]),
            confidence=row["confidence"],
            source=row["source"],
            decode_efficiency=float(row["decode_efficiency"]),
            decode_source=row["decode_source"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def version_of(text: str) -> Version:
    """The row that covers a version such as `0.19.0`."""

    def number(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:2])

    covering = [row for row in versions() if number(row.since) <= number(text)]
    if not covering:
        raise InputError(
            f"vLLM {text} is older than the oldest coefficients ({versions()[0].since})"
        )
    return covering[-1]
