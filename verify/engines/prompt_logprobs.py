"""vLLM's `prompt_logprobs` as a `Scored`: what a server says of tokens it was given.

In: the list vLLM puts into a choice, one object a prompt token (the first is null), from token id
to `{"logprob": ..., "rank": ...}`. Out: the passage's scored tokens.

vLLM names the SERVED_TOP likeliest tokens of each place (more only if it was started with
`--max-logprobs`) and the token that follows. Candidates it does not name are NaN; their mass is in
the tail, which is 1 minus what is named and not known below TAIL_FLOOR.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verify.engines.log_probabilities import Floats, Passage, Scored

SERVED_TOP = 20
TAIL_FLOOR = 1e-6
"""Named log-probabilities are float32: what their sum leaves of 1 is rounding below this."""
ROUNDING = 1e-2
"""By so much the probabilities of a row may be above 1: some servers compute in 16 bits."""
MAX_ID = 1 << 31

Row = Mapping[int, tuple[float, int]]
"""Log-probability and rank, from 1, by id: the tokens that a server names at one place."""


def read_prompt_logprobs(stated: Any, passage: Passage) -> Scored:
    """Raises ValueError if it is not what vLLM gives for this passage."""
    if not isinstance(stated, list) or len(stated) != len(passage.ids):
        raise ValueError("no prompt_logprobs, or not one a token")
    return scored_from_rows([_read_row(row) for row in stated[passage.start :]], passage)


def scored_from_rows(rows: Sequence[Row], passage: Passage) -> Scored:
    """What a server named at each scored token, [P], as log-probabilities of the candidates.

    Raises ValueError for numbers that are no log-probabilities: divergences are never below 0, so
    an artifact whose server gives logits would look like its reference.
    """
    for row in rows:
        _check_distribution(row)
    picked = passage.candidates
    if picked is None:
        width = min(len(row) for row in rows)
        picked = np.array(
            [
                _likeliest(row, width, target)
                for row, target in zip(rows, passage.ids[passage.start :], strict=True)
            ]
        )
    log_probs = np.array(
        [
            [row[i][0] if i in row else np.nan for i in ids]
            for row, ids in zip(rows, picked.tolist(), strict=True)
        ]
    )
    best = np.array([_two_best(row) for row in rows])
    best_log_probs = np.array(
        [[row[i][0] for i in ids] for row, ids in zip(rows, best.tolist(), strict=True)]
    )
    return Scored(passage.targets, picked, log_probs, _log_tail(log_probs), best, best_log_probs)


def _read_row(row: Any) -> Row:
    if not isinstance(row, dict) or len(row) < 2:
        raise ValueError("fewer than two tokens named at one place")
    try:
        return {int(i): (float(v["logprob"]), int(v["rank"])) for i, v in row.items()}
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a log-probability that cannot be read: {error}") from error


def _check_distribution(row: Row) -> None:
    if any(not 0 <= i < MAX_ID for i in row):
        raise ValueError("log-probabilities of token ids that are none")
    values = np.array([logprob for logprob, _ in row.values()])
    if not (values <= ROUNDING).all() or np.exp(values).sum() > 1 + ROUNDING:  # NaN is not <=
        raise ValueError("log-probabilities that are none: probabilities above 1, or no numbers")


def _two_best(row: Row) -> list[int]:
    return sorted(row, key=lambda i: row[i][1])[:2]


def _likeliest(row: Row, width: int, target: int) -> list[int]:
    """The likeliest ids, in order, the one that follows among them if it is named."""
    ids = sorted(row, key=lambda i: -row[i][0])
    if target in row and target not in ids[:width]:
        ids[width - 1] = target
    return ids[:width]


def _log_tail(log_probs: Floats) -> Floats:
    named = np.exp(np.where(np.isnan(log_probs), -np.inf, log_probs)).sum(1)
    tail: Floats = np.log(np.maximum(1 - named, TAIL_FLOOR))
    return tail
