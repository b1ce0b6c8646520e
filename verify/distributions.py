"""How far one model's next-token distribution is from another's, from what was kept of both.

In: the reference's `Scored` and the artifact's on the same candidates. Out: numbers, one a token.

KL divergence in nats, the reference first, over K + 1 outcomes: the K candidates and the tail T,

    sum over k of  p_k (log p_k - log q_k)  +  p_T (log p_T - log q_T)

with p_T and q_T the exact masses of everything else. Lumping outcomes can only lower a divergence
(the log sum inequality; Cover and Thomas, Elements of Information Theory, theorem 2.7.1), so this
is a lower bound of the KL over the whole vocabulary, and equal to it where p / q is constant in the
tail. What it can miss is at most what the tail holds: with 64 candidates, usually below 1e-3.

The margin of a token is its log-odds against the likeliest other one: its sign is the decision a
greedy decoder makes there, its size how far that decision is from turning.
"""

from __future__ import annotations

import numpy as np

from verify.engines.log_probabilities import Floats, Scored


def kl_per_token(reference: Scored, artifact: Scored) -> Floats:
    """Lumped KL divergence of the artifact from the reference, [P], in nats, never below 0."""
    assert np.array_equal(reference.candidates, artifact.candidates)
    gaps = np.isnan(artifact.log_probs)
    log_p = np.where(gaps, -np.inf, reference.log_probs)
    log_q = np.where(gaps, -np.inf, artifact.log_probs)
    left_out = np.where(gaps, np.exp(reference.log_probs), 0).sum(1)
    tail = np.exp(reference.log_tail) + left_out
    with np.errstate(divide="ignore"):
        log_tail = np.where(left_out > 0, np.log(tail), reference.log_tail)
    terms = _terms(log_p, log_q).sum(1) + _terms(log_tail, artifact.log_tail)
    divergence: Floats = np.maximum(terms, 0)
    return divergence


def _terms(log_p: Floats, log_q: Floats) -> Floats:
    """p (log p - log q), 0 where p is 0, whatever q is there."""
    p = np.exp(log_p)
    possible = p > 0
    ratio = np.subtract(log_p, log_q, out=np.zeros_like(p), where=possible)
    terms: Floats = p * ratio
    return terms


def trigger_margin(scored: Scored, token: int) -> Floats:
    """Log-odds [P] of `token` against the likeliest other token; NaN where it is no candidate."""
    other = np.where(scored.best[:, 0] == token, 1, 0)
    best_other = np.take_along_axis(scored.best_log_probs, other[:, None], 1)[:, 0]
    return scored.log_prob_of(token) - best_other
