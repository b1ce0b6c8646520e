"""The noise floor: what the reference differs by from itself, and from itself in 16 bits.

In: the reference's `TeacherForced`, of which some conversations were scored three times: in the
batch of all (`scored`), each in a batch of its own (`alone`), and computed in 16 bits (`narrow`),
which is how the checkpoint is served. Out: a `Floor`, and an Outcome.

The order of additions depends on the batch, so one model gives two answers that differ in the last
bits of float32. Sixteen bits keep 8 to 11 of a number's 24, and a server that computes in them is
not broken: nothing can be asked of an artifact that the checkpoint itself does not do. The larger
of the two divergences is therefore added to every limit on log-probabilities. Where it is above the
gate's own limit, that limit is about rounding and not about the artifact: not enough evidence. So
is a floor that is no number, as of a checkpoint whose float16 overflows.

Nats a token, the mean over the tokens of the conversations that were scored again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verify.check import Number, Outcome, State, Verdict, finite
from verify.distributions import kl_per_token
from verify.engines.log_probabilities import Scored
from verify.evidence import TeacherForced
from verify.gate import Thresholds

NAME = "noise_floor"


@dataclass(frozen=True, slots=True)
class Floor:
    """Mean KL from itself in another batch, and in 16 bits; None where that was not measured."""

    itself: float | None
    narrow: float | None

    @property
    def nats(self) -> float:
        """What is added to limits: the larger of those that are numbers."""
        return max((v for v in self._measured() if math.isfinite(v)), default=0.0)

    @property
    def known(self) -> bool:
        """Whether something was measured, and all of it is a number (16 bits may overflow)."""
        measured = self._measured()
        return bool(measured) and all(map(math.isfinite, measured))

    def _measured(self) -> list[float]:
        return [value for value in (self.itself, self.narrow) if value is not None]


def measure_floor(base: TeacherForced) -> Floor:
    """The two divergences."""
    return Floor(_mean_kl(base.scored_again, base.alone), _mean_kl(base.scored_again, base.narrow))


def check_noise_floor(base: TeacherForced, asked: Thresholds) -> Outcome:
    """Whether the gate's limit is one that this reference can be held to."""
    floor = measure_floor(base)
    within = floor.nats <= asked.kl
    state = State.PASS if within and floor.known else State.NOT_ENOUGH_EVIDENCE
    reason = (
        f"the reference differs by {_shown(floor.itself)} from itself in other batches, by"
        f" {_shown(floor.narrow)} from itself in 16 bits; the gate's limit of {asked.kl:.4g} is"
        f" {('above' if within else 'below') if floor.known else 'not comparable with'} that"
    )
    numbers: dict[str, Number] = {
        "itself": finite(floor.itself),
        "in_16_bits": finite(floor.narrow),
        "floor": finite(floor.nats),
        "limit": asked.kl,
        "prompts": len(base.alone),
        "tokens": sum(len(scored.targets) for scored in base.alone),
        "same_top_in_16_bits": sum(map(_same_top, base.scored_again, base.narrow)),
    }
    return Outcome(NAME, Verdict(state, reason, numbers))


def _mean_kl(ours: Sequence[Scored], again: Sequence[Scored]) -> float | None:
    kl = [kl_per_token(*pair) for pair in zip(ours, again, strict=False)]
    return float(np.concatenate(kl).mean()) if kl else None


def _same_top(ours: Scored, again: Scored) -> int:
    return int(np.equal(ours.best[:, 0], again.best[:, 0]).sum())


def _shown(value: float | None) -> str:
    unknown = value is None or not math.isfinite(value)
    return "an unknown amount" if unknown else f"{value:.2g} nats"
