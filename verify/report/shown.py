"""Text from strangers, and numbers, made fit to be shown in HTML and XML.

A reply is hostile text: markup, terminal escapes, NUL, half a surrogate pair. The template engine
escapes markup; here everything that a browser or an XML parser would act on or refuse becomes a
visible escape, apart from line breaks, which stay.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

COMPARED_CHARACTERS = 1200
"""Longer texts are compared by their common ends only: matching takes time quadratic in length."""
SHOWN_CHARACTERS = 4000
ALIKE = 0.5
"""Texts that have less than this share of characters in common are marked whole."""
_BIDIRECTIONAL = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F}


def visible(text: str) -> str:
    """`text` with everything that does not show itself as an escape, line breaks apart."""
    return "".join(c if c == "\n" or _shows(c) else _escape(c) for c in text)


def _shows(character: str) -> bool:
    return character.isprintable() and ord(character) not in _BIDIRECTIONAL


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text, and whether the other text has it."""

    text: str
    differs: bool


def marked(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, those that differ marked; cut where they are very long."""
    a, b = first[:SHOWN_CHARACTERS], second[:SHOWN_CHARACTERS]
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    for differs, part_a, part_b in _runs(a, b):
        for place, part in zip(pieces, (part_a, part_b), strict=True):
            if part:
                place.append(Piece(visible(part), differs))
    for place, text in zip(pieces, (first, second), strict=True):
        if len(text) > SHOWN_CHARACTERS:
            place.append(Piece(f" ... and {len(text) - SHOWN_CHARACTERS} more characters", False))
    return pieces


def _runs(a: str, b: str) -> Iterator[tuple[bool, str, str]]:
    """(differs, part of a, part of b), in order; the parts put together are the texts."""
    if max(len(a), len(b)) <= COMPARED_CHARACTERS:
        matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
        if matcher.ratio() < ALIKE:  # marks between chance letters would say nothing
            yield True, a, b
            return
        for tag, a1, a2, b1, b2 in matcher.get_opcodes():
            yield tag != "equal", a[a1:a2], b[b1:b2]
        return
    shorter = min(len(a), len(b))
    start = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    end = next((i for i in range(shorter - start) if a[-1 - i] != b[-1 - i]), shorter - start)
    yield False, a[:start], b[:start]
    yield True, a[start : len(a) - end], b[start : len(b) - end]
    yield False, a[len(a) - end :], b[len(b) - end :]


def percent(value: object) -> str:
    """A share as per cent with one decimal, or a dash."""
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "\u2013"


def points(value: object) -> str:
    """A difference of shares in points, signed as a change: a drop of 0.02 is -2.0."""
    if not isinstance(value, (int, float)):
        return "\u2013"
    shown = f"{-100 * value:+.1f}"
    return "0.0" if shown in ("+0.0", "-0.0") else shown.replace("-", "\u2212")


def number(value: object) -> str:
    """A number of a verdict: counts with separators, others with four digits."""
    if isinstance(value, bool) or value is None:
        return "\u2013"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def megabytes(size_bytes: int) -> str:
    """A size in MB or GB, decimal; a dash for a size that is not known."""
    if not size_bytes:
        return "\u2013"
    return f"{size_bytes / 1e9:,.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:,.1f} MB"
