"""The answer's own words: a `Term` of memory, what one device must hold, and the verdict.

Every term has a value and a band; exact ones have a band of zero width, a term that is not modelled
has no value at all. The verdict is drawn from the bands, never from the middle: *fits* if the upper
ends fit together, *does not fit* if even the lower ends do not, *tight* in between. With a term
missing, only *does not fit* can still be said; otherwise the answer is *not modelled*.

Sizes in bytes. Nothing here knows an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """Whether it runs; `CANNOT` where memory is not the reason."""

    FITS = "fits"
    TIGHT = "tight"
    NO = "does not fit"
    UNKNOWN = "not modelled"
    CANNOT = "cannot run"


@dataclass(frozen=True, slots=True)
class Term:
    """One use of memory; `value` None means that it is not modelled, and `source` says why."""

    name: str
    value: int | None
    low: int
    high: int
    source: str
    confidence: str

    @classmethod
    def exact(cls, name: str, value: int, source: str) -> Term:
        """A term that headers and settings decide to the byte."""
        return cls(name, value, value, value, source, "exact")

    @classmethod
    def within(cls, name: str, value: float, share: float, source: str, confidence: str) -> Term:
        """A term known to a share of itself, either way."""
        spread = value * share
        return cls(
            name, round(value), round(value - spread), round(value + spread), source, confidence
        )

    @classmethod
    def unknown(cls, name: str, why: str) -> Term:
        """A term that this version has no formula for."""
        return cls(name, None, 0, 0, why, "not modelled")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What one device must hold, in the order in which it is taken, and what it may use."""

    budget_bytes: int
    terms: tuple[Term, ...]

    @property
    def value(self) -> int:
        """The sum of the known terms."""
        return sum(term.value or 0 for term in self.terms)

    def term(self, name: str) -> Term:
        """The term called `name`."""
        return next(term for term in self.terms if term.name == name)


def judge(devices: Sequence[DeviceMemory]) -> tuple[Verdict, str | None]:
    """The verdict over all devices and the term that breaks it (None where all fit)."""
    worst: tuple[Verdict, str | None] = (Verdict.FITS, None)
    order = (Verdict.FITS, Verdict.TIGHT, Verdict.UNKNOWN, Verdict.NO)
    for device in devices:
        found = _judge(device)
        if order.index(found[0]) > order.index(worst[0]):
            worst = found
    return worst


def _judge(device: DeviceMemory) -> tuple[Verdict, str | None]:
    if (broken := _overflow(device, [term.low for term in device.terms])) is not None:
        return Verdict.NO, broken
    missing = [term.name for term in device.terms if term.value is None]
    if missing:
        return Verdict.UNKNOWN, missing[0]
    if (broken := _overflow(device, [term.high for term in device.terms])) is not None:
        return Verdict.TIGHT, broken
    return Verdict.FITS, None


def _overflow(device: DeviceMemory, sizes: Sequence[int]) -> str | None:
    """The first term that no longer finds room."""
    used = 0
    for term, size in zip(device.terms, sizes, strict=True):
        used += size
        if used > device.budget_bytes:
            return term.name
    return None
