"""Which answer to take, and why; or, where nothing fits, what to change first.

The recommendation follows a rule, not a taste. vLLM first, if any 8- or 16-bit folder fits there:
8 bits where the GPU computes in FP8 or 16 bits do not fit, else 16. Otherwise the GGUF with the
most bits that fits, Q8_0 at the most. Four-bit folders come last.
"""

from __future__ import annotations

from collections.abc import Sequence

from quantize.fit.answer import Answer
from quantize.fit.memory import Verdict

_PARTLY_OFFLOADED = 2
_NOT_RECOMMENDED = ("F32", "TQ1_0", "TQ2_0", "MXFP4_MOE", "BF16", "F16")
"""GGUF targets for models trained for them, or with more bits than anything is lost without."""


def recommend(answers: Sequence[Answer]) -> tuple[Answer | None, str]:
    """The answer to take, and the reason in one sentence."""
    fitting = [answer for answer in answers if answer.verdict is Verdict.FITS]
    folders = [answer for answer in fitting if answer.engine == "vllm"]
    eight = [answer for answer in folders if answer.candidate.is_eight_bit]
    whole = [a for a in folders if a.candidate.target in ("BF16", "F16")]
    files = [
        answer for answer in fitting if answer.engine == "llama.cpp" and _is_worthwhile(answer)
    ]
    native = [answer for answer in eight if answer.arithmetic == "W8A8"]
    if native:
        return native[0], "8 bits that this GPU computes in: half the memory, twice the KV cache"
    if whole:
        known = "weight-only" in (eight[0].arithmetic if eight else "")
        gain = "this GPU gains no speed from FP8" if known else "what FP8 gains depends on the GPU"
        return whole[0], f"16 bits fit, and {gain}"
    if eight:
        return eight[0], "16 bits do not fit; FP8 as weights only keeps the most of them"
    if files:
        best = max(files, key=lambda answer: answer.candidate.size_bytes)
        return best, "the most bits that fit, as a GGUF of up to Q8_0"
    if folders:
        return folders[0], "the only folder that fits"
    if fitting:
        return fitting[0], "the only artifact that fits"
    return None, _nothing_fits(answers)


def _nothing_fits(answers: Sequence[Answer]) -> str:
    """The lever that costs least, on the artifact with the most bits that it is enough for."""
    useful = [a for a in answers if a.lever and (a.engine == "vllm" or _is_worthwhile(a))]
    if useful:
        best = min(useful, key=_preference)
        return f"nothing fits as asked; first lever: {best.candidate.name} with {best.lever}"
    if any(answer.verdict is Verdict.UNKNOWN for answer in answers):
        return "not modelled: no verdict can be given for this model"
    return "nothing fits, and no single change makes it fit"


def _is_worthwhile(answer: Answer) -> bool:
    return answer.candidate.target not in _NOT_RECOMMENDED


def _preference(answer: Answer) -> tuple[int, int]:
    """The cheapest lever, then the most bits; where that takes hardware, the least of it."""
    cost = _cost(answer.lever or "")
    size = answer.candidate.size_bytes
    return cost, size if cost >= _PARTLY_OFFLOADED else -size


def _cost(lever: str) -> int:
    """Flags cost least, then context, then layers in main memory, then devices."""
    if " GPUs, " in lever:
        return 3
    if lever.startswith("-ngl"):
        return _PARTLY_OFFLOADED
    return 1 if lever.startswith(("--max-model-len", "-c ")) else 0
