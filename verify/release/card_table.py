"""The tables of a model card: what was measured of each artifact, as cells of text.

In: the artifacts of one repository as they lie in it. Out: columns (heading, whether of numbers)
and rows. Plain artifacts are measured against the original, edited ones against the unedited
artifact of their type, so their columns are others. Every cell is a number of the report, or a
dash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convert.terminal import readable_size
from verify.check import Number
from verify.release.manifest import Placed
from verify.report.contents import ArtifactReport
from verify.statistics import Rate

DASH = "-"
_FILE = (("file", False), ("type", False), ("size", True), ("bits per weight", True))
_PLAIN = ("KL to the original", "right tool calls", "same calls as the original")
_EDITED = (
    "refused before",
    "refused now",
    "of these answered rightly",
    "KL on harmless replies",
    "right tool calls before",
    "right tool calls now",
)


@dataclass(frozen=True, slots=True)
class Table:
    """Headings with whether they are of numbers; rows as long as that."""

    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[str]]


def artifact_table(placed: Sequence[Placed], devices: Sequence[str]) -> Table:
    """Size and measurements of every artifact; the artifacts of a repository are of one kind."""
    edited = placed[0].gated.made.wanted.edited
    measured = [(name, True) for name in (_EDITED if edited else _PLAIN)]
    columns = [*_FILE, *measured, *((device, False) for device in devices)]
    rows = []
    for item in placed:
        found = item.gated.found
        cells = _edited(found) if edited else _plain(found)
        rows.append([*_file(item), *cells, *_fits(item, devices)])
    return Table(columns, rows)


def verified_rows(placed: Sequence[Placed]) -> list[tuple[str, str, str]]:
    """What ran each artifact, and what is known of its weights."""
    return [(_name(p), _engine(p.gated.found), _weights(p.gated.found)) for p in placed]


def rate_words(rate: Rate | None) -> str:
    """A share in words; a dash where nothing was counted."""
    if rate is None or rate.value is None:
        return DASH
    return f"{rate.hits} of {rate.total} ({100 * rate.value:.1f} %)"


def _name(placed: Placed) -> str:
    return f"`{placed.gated.found.name if placed.path == '.' else placed.path}`"


def _file(placed: Placed) -> list[str]:
    found, made = placed.gated.found, placed.gated.made
    size = made.planned.size_bytes
    bits = f"{8 * size / made.parameters:.2f}"
    return [_name(placed), found.type, readable_size(size), bits]


def _plain(found: ArtifactReport) -> list[str]:
    calls = rate_words(found.scores.kinds.get("calls")) if found.scores else DASH
    agreement = _numbers(found, "agreement")
    same = DASH
    if "same_calls" in agreement:
        same = f"{agreement['same_calls']} of {agreement['with_tools']}"
    return [_short(_numbers(found, "reply_kl").get("kl")), calls, same]


def _edited(found: ArtifactReport) -> list[str]:
    refusals, right = _numbers(found, "refusals"), _numbers(found, "compliance")
    calls = _numbers(found, "tool_calls")
    return [
        _share(refusals, "before", "before_of"),
        _share(refusals, "after", "after_of"),
        _share(right, "right", "right_of"),
        _short(_numbers(found, "drift").get("mean_kl")),
        _share(calls, "reference_right", "prompts"),
        _share(calls, "artifact_right", "prompts"),
    ]


def _numbers(found: ArtifactReport, check: str) -> Mapping[str, Number]:
    named = (o.verdict.numbers for o in found.outcomes if o.check == check)
    return next(named, {})


def _share(numbers: Mapping[str, Number], hits: str, total: str) -> str:
    return f"{numbers[hits]} of {numbers[total]}" if hits in numbers and total in numbers else DASH


def _short(value: Number) -> str:
    return f"{value:.2g}" if isinstance(value, float) else DASH


def _fits(placed: Placed, devices: Sequence[str]) -> list[str]:
    known = {row["device"]: _fit(row) for row in placed.fit}
    return [known.get(device, DASH) for device in devices]


def _fit(row: Mapping[str, Any]) -> str:
    context = row["largest_context"]
    most = f", up to {context:,} tokens" if row["verdict"] == "fits" and context else ""
    return f"{row['verdict']}{most}"


def _engine(found: ArtifactReport) -> str:
    return f"{found.engine.name} {found.engine.version}" if found.engine else DASH


def _weights(found: ArtifactReport) -> str:
    checks = [o for o in found.outcomes if o.check in ("weights", "gguf_weights", "residue")]
    return checks[0].verdict.reason if checks else "not compared one by one"
