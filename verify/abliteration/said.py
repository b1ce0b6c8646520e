"""What one model said to prompts that were refused and to harmless ones, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.engines.log_probabilities import Floats, Scored
from verify.evidence import Answer

REPLY_TOKENS = 128
"""At least 100: a refusal may come after a friendly beginning."""
DRIFT_TOKENS = 16
_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Said:
    """One model's replies to the prompts that were refused and to harmless ones.

    `scored` follow the unedited model's replies to harmless prompts; `scores` are refusal scores of
    the first token after the prompts that were refused, `harmless_scores` after the harmless ones.
    """

    refused: tuple[Answer, ...]
    harmless: tuple[Answer, ...]
    scored: tuple[Scored, ...]
    scores: Floats
    harmless_scores: Floats


def first_token_scores(scored: Sequence[Scored], first_tokens: Sequence[int]) -> Floats:
    """Refusal score of the first token of each passage; the tokens must be among candidates."""
    chance = np.array(
        [
            sum(
                float(np.exp(np.nan_to_num(s.log_prob_of(t)[0], nan=-np.inf))) for t in first_tokens
            )
            for s in scored
        ]
    )
    scores: Floats = np.log(chance + _EPSILON) - np.log(np.maximum(1 - chance, 0) + _EPSILON)
    return scores
