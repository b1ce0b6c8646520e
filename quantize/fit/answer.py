"""The answer for one artifact on one engine, and what is asked: `Question`, `Answer`.

Everything a table, a card, a plot or a program needs is in an `Answer`; nothing is computed when it
is printed. Memory terms are per device; in a split over several, `devices` has one entry each.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantize.fit.candidate import Candidate
from quantize.fit.gpu import Gpu
from quantize.fit.memory import DeviceMemory, Term, Verdict

LEAST_CONTEXT = 1024
"""A shorter context than this is not offered as a way out."""


@dataclass(frozen=True, slots=True)
class Question:
    """`count` devices like `gpu`, `concurrency` requests of `context` tokens each.

    `limit_bytes` is what may be used of each device, where that is less than all of it.
    `concurrency` None means one request, with vLLM's own limits on batches left as they are;
    `kv_type` None means what the artifact says, else 16 bits.
    """

    gpu: Gpu
    count: int
    context: int
    concurrency: int | None
    kv_type: str | None = None
    limit_bytes: int | None = None

    @property
    def usable_bytes(self) -> int:
        """Bytes of one device that may be used."""
        return min(self.gpu.usable_bytes, self.limit_bytes or self.gpu.usable_bytes)

    @property
    def requests(self) -> int:
        """Requests that must find room at once."""
        return self.concurrency or 1


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one request: the bandwidth bound, and the share of it to expect."""

    bound: float
    efficiency: float
    source: str

    @property
    def estimate(self) -> float:
        """Tokens a second to expect."""
        return self.bound * self.efficiency


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether, how and how far one artifact runs; None where that cannot be said."""

    candidate: Candidate
    engine: str
    engine_version: str
    verdict: Verdict
    breaks: str | None
    devices: tuple[DeviceMemory, ...] = ()
    host: tuple[Term, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    arithmetic: str = ""
    largest_context: int | None = None
    largest_concurrency: int | None = None
    fewest_gpus: int | None = None
    speed: Speed | None = None
    lever: str | None = None
    make: str | None = None
    command: str | None = None

    @property
    def fullest(self) -> DeviceMemory | None:
        """The device with the least room left."""
        return min(self.devices, key=lambda d: d.budget_bytes - d.value, default=None)
