"""The noise floor: what the reference differs by from itself, and from itself in 16 bits.

In: the reference's `TeacherForced`, of which some conversations were scored and answered three
times: in the batch of all, each in a batch of its own (`alone`), and computed in 16 bits
(`narrow`), which is how the checkpoint is served. Out: a `Floor`, and an Outcome.

The order of additions depends on the batch, so one model gives two answers that differ in the last
bits of float32. Sixteen bits keep 8 to 11 of a number's 24, and a server that computes in them is
not broken: nothing can be asked of an artifact that the checkpoint itself does not do. The larger
of the two divergences is therefore added to every limit on log-probabilities, each its own: a
prompt's tokens are less certain than a reply's and differ by more, so that over prompts is for
`chat_kl`, that over replies for what is measured of replies, that of the long text for it.

Counts of a few conversations are no margin to add; they are shown (`asked_again.py`). There is not
enough evidence where a floor is above the gate's own limit, which is then about rounding and not
about the artifact; where more decisions to call than the gate lets turn could turn by themselves;
where the reference plainly does not make its own calls again; and where a floor is no number, as of
a checkpoint whose float16 overflows. More prompts do not help there.

Nats a token, means over the tokens of the conversations that were scored again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from verify.asked_again import AnsweredAgain, Decisions, answers_again, measure_decisions
from verify.check import Number, Outcome, State, Verdict, finite
from verify.distributions import kl_per_token
from verify.engines.log_probabilities import Floats, Scored
from verify.evidence import Reference
from verify.gate import Thresholds

NAME = "noise_floor"


@dataclass(frozen=True, slots=True)
class Apart:
    """Mean KL from itself in another batch, and in 16 bits; None where that was not measured."""

    itself: float | None
    narrow: float | None

    @property
    def nats(self) -> float:
        """What is added to limits: the larger of those that are numbers."""
        return max((v for v in self.measured() if math.isfinite(v)), default=0.0)

    def measured(self) -> list[float]:
        """What there is of the two."""
        return [value for value in (self.itself, self.narrow) if value is not None]


@dataclass(frozen=True, slots=True)
class Floor:
    """Over prompts, over replies, and over the long text, which has a batch of its own anyway."""

    prompts: Apart
    replies: Apart
    long: Apart

    @property
    def known(self) -> bool:
        """Whether something was measured, and all of it is a number (16 bits may overflow)."""
        every = [v for apart in (self.prompts, self.replies, self.long) for v in apart.measured()]
        return bool(self.replies.measured()) and all(map(math.isfinite, every))

    def within(self, asked: Thresholds) -> bool:
        """Whether the gate's limits are above it."""
        short = max(self.prompts.nats, self.replies.nats)
        return short <= asked.kl and self.long.nats <= asked.wide_kl


def measure_floor(reference: Reference) -> Floor:
    """The divergences; nothing where the reference was not scored again."""
    base = reference.forced
    assert base is not None
    replies = [len(reference.answers[base.conversations[at]].ids) for at in base.again]
    itself, narrow = (
        [kl_per_token(*pair) for pair in zip(base.scored_again, again, strict=False)]
        for again in (base.alone, base.narrow)
    )
    long = None if base.long_narrow is None else kl_per_token(base.long, base.long_narrow)
    return Floor(
        Apart(_mean(itself, replies, _before), _mean(narrow, replies, _before)),
        Apart(_mean(itself, replies, _after), _mean(narrow, replies, _after)),
        Apart(None, None if long is None else float(long.mean())),
    )


def _before(kl: Floats, reply: int) -> Floats:
    return kl[:-reply]


def _after(kl: Floats, reply: int) -> Floats:
    return kl[-reply:]


def _mean(
    found: Sequence[Floats], replies: Sequence[int], part: Callable[[Floats, int], Floats]
) -> float | None:
    """Of one part of every passage, given the lengths of the replies; None for no token."""
    parts = [part(kl, reply) for kl, reply in zip(found, replies, strict=False)]
    return float(np.concatenate(parts).mean()) if sum(map(len, parts)) else None


def check_noise_floor(reference: Reference, asked: Thresholds) -> Outcome:
    """Whether the gate's limits are ones that this reference can be held to."""
    floor, decisions = measure_floor(reference), measure_decisions(reference)
    again = answers_again(reference, asked.tier)
    good = floor.known and floor.within(asked) and _holds(decisions, again, asked)
    reason = _reason(floor, decisions, again, asked)
    reason += "" if good else "; no number of prompts changes that"
    numbers = _numbers(reference, floor) | {"limit": asked.kl}
    numbers |= decisions.numbers() if decisions else {}
    numbers |= again.numbers() if again else {}
    state = State.PASS if good else State.NOT_ENOUGH_EVIDENCE
    return Outcome(NAME, Verdict(state, reason, numbers))


def _holds(decisions: Decisions | None, again: AnsweredAgain | None, asked: Thresholds) -> bool:
    """Whether the reference would itself pass what is asked of decisions and of calls."""
    turning = 0.0 if decisions is None else decisions.within / decisions.all
    rates = () if again is None else (again.alone, again.narrow)
    return turning <= 1 - asked.same_trigger and not any(
        rate.decide(asked.same_calls) is State.FAIL for rate in rates
    )


def _reason(
    floor: Floor, decisions: Decisions | None, again: AnsweredAgain | None, asked: Thresholds
) -> str:
    prompts, replies = floor.prompts, floor.replies
    beside = "above" if floor.within(asked) else "below"
    reason = (
        f"the reference differs by {_shown(prompts.itself)} over prompts and"
        f" {_shown(replies.itself)} over replies from itself in other batches, by"
        f" {_shown(prompts.narrow)} and {_shown(replies.narrow)} from itself in 16 bits; the gate's"
        f" limit of {asked.kl:.4g} is {beside if floor.known else 'not comparable with'} that"
    )
    if decisions is not None:
        reason += f"; {decisions.within} of {decisions.all} decisions to call could turn by it"
    if again is not None:
        reason += f"; asked again, it makes its own calls in {again}"
    return reason


def _numbers(reference: Reference, floor: Floor) -> dict[str, Number]:
    base = reference.forced
    assert base is not None
    return {
        "prompts_itself": finite(floor.prompts.itself),
        "prompts_in_16_bits": finite(floor.prompts.narrow),
        "prompts_floor": floor.prompts.nats,
        "replies_itself": finite(floor.replies.itself),
        "replies_in_16_bits": finite(floor.replies.narrow),
        "replies_floor": floor.replies.nats,
        "long_in_16_bits": finite(floor.long.narrow),
        "prompts": len(base.alone),
        "tokens": sum(len(scored.targets) for scored in base.alone),
        "same_top_in_16_bits": sum(map(_same_top, base.scored_again, base.narrow)),
    }


def _same_top(ours: Scored, again: Scored) -> int:
    return int(np.equal(ours.best[:, 0], again.best[:, 0]).sum())


def _shown(value: float | None) -> str:
    unknown = value is None or not math.isfinite(value)
    return "an unknown amount" if unknown else f"{value:.2g} nats"
