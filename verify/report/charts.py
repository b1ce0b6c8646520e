"""Places of marks in the report's drawings: errors by tensor, KL by part, first decisions.

In: an `ArtifactReport`. Out: numbers in the units of an inline SVG, or None where the check that
has them was not made. A drawing shows every point of its check: nothing is sampled or smoothed.

    tensors   a bar a tensor, in file order: its relative error (GGUF), or its error over the bound
              (FP8), over that of our own encoding (other folders), or over the rounding floor
              (abliteration), from zero to the largest
    spans     mean KL of each part of the replies with its interval, and the limit, on a logarithmic
              scale, as parts differ by powers of ten; what is below 1e-6 is at its left end
    triggers  margin of the first decision, the reference's across and the artifact's up; what lies
              in the upper left or lower right turned from a call to none, or back
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from verify.check import Outcome
from verify.report.contents import ArtifactReport
from verify.spans import Span

TENSORS_WIDTH, TENSORS_HEIGHT = 640.0, 110.0
SPANS_WIDTH, SPANS_EDGE = 320.0, 6.0
LEAST_KL = 1e-6
SQUARE, SQUARE_EDGE = 260.0, 8.0
_TENSORS = {
    "gguf_weights": ("error", "relative error"),
    "weights": ("ratio", "error over its bound (FP8), or over that of our own encoding"),
    "residue": ("ratio", "error along the direction over its rounding floor"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One tensor: where its bar stands, how high it is, and its number."""

    name: str
    x: float
    width: float
    height: float
    value: float


@dataclass(frozen=True, slots=True)
class Bars:
    """All tensors; `largest` is the value at full height, `what` the number's name."""

    what: str
    largest: Bar
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class SpanMark:
    """One part of the replies: places from the left, and the numbers they stand for."""

    name: str
    left: float
    right: float
    middle: float
    value: float
    low: float
    high: float
    tokens: int
    beyond: bool


@dataclass(frozen=True, slots=True)
class Spans:
    """Every part on one scale from `least`; `limit` is the place of `limit_value`."""

    least: float
    limit: float
    limit_value: float
    marks: tuple[SpanMark, ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """One conversation's first decision under both models."""

    name: str
    x: float
    y: float
    turned: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """All first decisions; the axes reach from -reach to +reach nats."""

    reach: float
    zero: float
    dots: tuple[Dot, ...]

    @property
    def turned(self) -> int:
        """How many decisions turned."""
        return sum(dot.turned for dot in self.dots)


def tensor_bars(artifact: ArtifactReport) -> Bars | None:
    """Errors by tensor."""
    for outcome in artifact.outcomes:
        if outcome.check not in _TENSORS:
            continue
        key, what = _TENSORS[outcome.check]
        found = [(p.subject, v) for p in outcome.points if (v := p.values.get(key)) is not None]
        most = max((value for _, value in found), default=0.0)
        if most <= 0:
            return None
        width = TENSORS_WIDTH / len(found)
        bars = tuple(
            Bar(name, round(i * width, 2), round(width * 0.8, 2),
                round(value / most * TENSORS_HEIGHT, 2), value)
            for i, (name, value) in enumerate(found)
        )  # fmt: skip
        return Bars(what, max(bars, key=lambda bar: bar.value), bars)
    return None


def span_marks(artifact: ArtifactReport) -> Spans | None:
    """Mean KL by part of the replies."""
    outcome = _outcome(artifact, "reply_kl")
    if outcome is None:
        return None
    numbers = outcome.verdict.numbers
    limit = numbers.get("span_limit")
    rows: list[tuple[str, float, float, float, int]] = []
    for span in Span:
        value, low, high = (numbers.get(f"{span.value}_kl{end}") for end in ("", "_low", "_high"))
        if isinstance(value, float):
            left, right = (v if isinstance(v, float) else value for v in (low, high))
            tokens = numbers.get(f"{span.value}_kl_tokens")
            count = tokens if isinstance(tokens, int) else 0
            rows.append((span.value, value, left, right, count))
    if not rows or not isinstance(limit, float):
        return None
    most = max(limit, 10 * LEAST_KL, *(high for _, _, _, high, _ in rows))

    def place(value: float) -> float:
        share = math.log(max(value, LEAST_KL) / LEAST_KL) / math.log(most / LEAST_KL)
        return round(SPANS_EDGE + share * (SPANS_WIDTH - 2 * SPANS_EDGE), 1)

    marks = tuple(
        SpanMark(name, place(low), place(high), place(value), value, low, high, tokens, low > limit)
        for name, value, low, high, tokens in rows
    )
    return Spans(LEAST_KL, place(limit), limit, marks)


def trigger_dots(artifact: ArtifactReport) -> Scatter | None:
    """First decisions, the reference's against the artifact's."""
    outcome = _outcome(artifact, "trigger")
    found = [
        (point.subject, a, b)
        for point in (outcome.points if outcome else ())
        if (a := point.values.get("reference")) is not None
        and (b := point.values.get("artifact")) is not None
    ]
    if not found:
        return None
    reach = max(max(abs(a), abs(b)) for _, a, b in found) or 1.0

    def place(value: float) -> float:
        return round(SQUARE / 2 + value / reach * (SQUARE / 2 - SQUARE_EDGE), 1)

    dots = tuple(
        Dot(name, place(a), round(SQUARE - place(b), 1), (a > 0) != (b > 0)) for name, a, b in found
    )
    return Scatter(reach, SQUARE / 2, dots)


def _outcome(artifact: ArtifactReport, check: str) -> Outcome | None:
    return next((outcome for outcome in artifact.outcomes if outcome.check == check), None)
