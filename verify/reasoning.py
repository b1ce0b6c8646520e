"""Whether the reference's reasoning comes to an end within the tokens that replies were given.

In: the reference's answers. Out: an Outcome, or None if no reply begins with reasoning.

Two replies that are cut off while they think make no calls, so they would count as equal, and a
model of which nothing was seen but its thoughts would pass. Where more than MOST of the reference's
reasoning is cut off, there is not enough evidence, and the remedy is more tokens.
"""

from __future__ import annotations

from verify.check import Outcome, State, Verdict
from verify.evidence import Reference
from verify.statistics import count
from verify.strata import reasons

NAME = "reasoning"
MOST = 0.05
"""The share of replies with reasoning that may be cut off inside it."""


def check_reasoning(reference: Reference) -> Outcome | None:
    """Count the reasoning that has no end."""
    thought = [answer for answer in reference.answers if reasons(answer) or answer.reply.unfinished]
    if not thought:
        return None
    cut = count([answer.reply.unfinished for answer in thought])
    state = State.PASS if cut.hits <= MOST * cut.total else State.NOT_ENOUGH_EVIDENCE
    reason = f"reasoning of the reference that does not end: {cut.hits} of {cut.total} replies"
    if state is not State.PASS:
        reason += "; give replies more tokens (--max-new-tokens)"
    numbers = {"unfinished": cut.hits, "with_reasoning": cut.total, "most": MOST}
    return Outcome(NAME, Verdict(state, reason, numbers))
