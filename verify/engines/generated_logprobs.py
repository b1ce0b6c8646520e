"""llama-server's log-probabilities along a text: it gives those of tokens it generates only.

In: a passage, and a function that sends a request. Out: the passage's `Scored`.

One request a token: the text up to there as the prompt, and one token to generate with the K
likeliest (`n_probs`). What is named is the softmax of the raw row of logits (`populate_token_probs`
in tools/server/server-context.cpp, before any sampler), so the token that is generated may be
chosen freely: it is the one that follows in the text, by a `logit_bias` nothing outweighs, because
the log-probability of the generated token is named even where it is none of the K. So a row is what
vLLM's `prompt_logprobs` gives: the likeliest and the one that follows, all else is tail.

Each prompt is the one before and a token. With `cache_prompt`, and one request at a time in one
slot, a request costs one step of decoding, and a passage what it would cost to generate it.
(Several slots at once lose their caches to each other: a server with a unified cache clears those
that are idle, and every step reads its whole prompt again.) A token whose
bytes end inside a character is left out of the answer; such a row is asked for once more with "a"
to be generated. A grammar could force a whole text in one request, but llama.cpp ends the process
where a grammar meets such a token or an end of turn (`llama_grammar_accept_impl`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from verify.engines.log_probabilities import Passage, Scored
from verify.engines.openai_client import JsonObject
from verify.engines.prompt_logprobs import Row, scored_from_rows

SOFTWARE = "llamacpp"
"""What llama-server puts into `owned_by`."""
_BIAS = 1e6
_LEAST = -104.0
"""Below the logarithm of the least float32: a probability of 0 is sent as -3.4e38."""
_WHOLE = "a"
"""A text that ends where a character does, whatever the vocabulary."""
Ask = Callable[[JsonObject], JsonObject]
"""From a request's own fields to the first choice of the answer."""


def score_by_steps(ask: Ask, passage: Passage, *, top: int) -> Scored:
    """Raises ValueError if the answers are not what llama-server gives."""
    rows = []
    for place in range(passage.start, len(passage.ids)):
        prompt, target = list(passage.ids[:place]), passage.ids[place]
        row = _ask(ask, prompt, top, target)
        rows.append(_ask(ask, prompt, top, _WHOLE) if row is None else row)
        if rows[-1] is None:
            raise ValueError("no log-probabilities of a generated token")
    return scored_from_rows([row for row in rows if row is not None], passage)


def _ask(ask: Ask, prompt: list[int], top: int, forced: int | str) -> Row | None:
    """The tokens named after a prompt; None if none is."""
    choice = ask(
        {
            "prompt": prompt,
            "max_tokens": 1,
            "n_probs": top,
            "logit_bias": [[forced, _BIAS]],
            "cache_prompt": True,
            "id_slot": 0,
        }
    )
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not content:
        return None
    if not isinstance(content, list):
        raise ValueError("log-probabilities that are no list")
    return _read_row(content[0], forced if isinstance(forced, int) else None)


def _read_row(stated: Any, target: int | None) -> Row:
    """Log-probability and rank by id; the generated token's own after the likeliest."""
    try:
        named = [(int(v["id"]), _number(v)) for v in stated["top_logprobs"]]
        row = {i: (logprob, rank) for rank, (i, logprob) in enumerate(named, start=1)}
        if target is not None and int(stated["id"]) == target:
            row.setdefault(target, (_number(stated), len(row) + 1))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a log-probability that cannot be read: {error!r}") from error
    if len(row) < 2:
        raise ValueError("fewer than two tokens named at one place")
    return row


def _number(stated: Any) -> float:
    return max(float(stated["logprob"]), _LEAST)
