"""Scales: do the scales that a folder fixes for what is rounded as it runs fit what comes?

In: of a folder with static scales (`input_scale` of a matrix, `k_scale` and `v_scale` of the KV
cache) each scale's limit, 448 times it, and the largest magnitude that the scored text sent there.
Out: an Outcome that names the scales that do not fit.

Nothing in the weights tells these scales: they come from a calibration text, so the files alone
cannot be checked for more than that they are there. A limit far below what comes clips it; one far
above leaves small values to E4M3's subnormals, which begin at 2^-6, 1/28,672 of the limit. Neither
need show in answers to easy prompts. A calibration text and a suite differ too, hence the room:
CLIPPED and WIDE. Scales that were never calibrated are 1.0, a limit of 448.
"""

from __future__ import annotations

from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite
from verify.engines import StatedScale
from verify.evidence import Evidence

NAME = "scales"
CLIPPED, WIDE = 4.0, 8.0
"""What comes may be so many times the limit, the limit so many times what comes."""
FINDINGS_SHOWN = 20


def check_scales(evidence: Evidence, /) -> tuple[Outcome, ...]:
    """Hold every scale against what came; no outcome where the artifact fixes none."""
    scales = evidence.scales
    if not scales:
        return ()
    wrong = sorted((scale for scale in scales if not _fits(scale)), key=_off, reverse=True)
    reached = sum(scale.seen > 0 for scale in scales)
    numbers: dict[str, Number] = {
        "scales": len(scales),
        "reached": reached,
        "wrong": len(wrong),
        "smallest_limit_over_seen": finite(min(map(_ratio, scales), default=None)),
        "largest_limit_over_seen": finite(max(map(_ratio, scales), default=None)),
    }
    points = tuple(
        Point(s.name, {"limit": finite(s.limit), "seen": finite(s.seen)}) for s in scales
    )
    findings = tuple(Finding(scale.name, _message(scale)) for scale in wrong[:FINDINGS_SHOWN])
    if reached < len(scales):
        state, reason = State.NOT_ENOUGH_EVIDENCE, f"no text reached {len(scales) - reached} scales"
    else:
        state, reason = State.PASS, f"all {len(scales)} scales fit what came"
    if wrong:
        state, reason = State.FAIL, f"{len(wrong)} of {len(scales)} scales do not fit what came"
    return (Outcome(NAME, Verdict(state, reason, numbers), findings, points),)


def _ratio(scale: StatedScale) -> float:
    return scale.limit / scale.seen if scale.seen > 0 else float("inf")


def _fits(scale: StatedScale) -> bool:
    """One that nothing reached is not known to be wrong; one that is no number is."""
    if scale.seen == 0:
        return True
    return bool(1 / CLIPPED <= _ratio(scale) <= WIDE)


def _off(scale: StatedScale) -> float:
    ratio = _ratio(scale)
    return max(ratio, 1 / ratio) if ratio > 0 else float("inf")


def _message(scale: StatedScale) -> str:
    what = "clips what comes" if scale.limit < scale.seen else "is too wide for what comes"
    return f"holds up to {scale.limit:.4g} and {what}: at most {scale.seen:.4g}"
