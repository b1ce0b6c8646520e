"""What the checks on log-probabilities ask of each type, as data.

`kl` bounds the mean KL divergence in nats a token, over prompts and over replies, and the mean
log-probability lost on replies. The anchor is llama.cpp's own table for Llama-3-8B on running text
(tools/perplexity/README.md): Q8_0 0.00136, Q6_K 0.00545, Q5_K_M 0.0108, Q4_K_M 0.0313, Q3_K_M
0.102, Q2_K 0.445. A limit is two to seven times its row, as texts and models vary. A cast has only
its cache's rounding to lose: 0.001. For FP8 no figure is published; with activations rounded too it
measured 0.010 on the prompts of hermes-nano, where Q6_K had 0.004 and Q5_K_M 0.011.

One part of a reply (`span_kl`) has few tokens and gets three times the limit; so has the one long
text (`long_kl`), in which a wrong rope base costs more than 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from verify.artifact import SERVED

OF_LOG_PROBABILITIES = (
    "chat_kl", "reply_kl", "trigger", "log_prob", "long_context", "log_probabilities"
)  # fmt: skip
"""The names of the checks; the last one stands for all where there are no log-probabilities."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in nats a token, and the least share of unchanged first decisions."""

    kl: float
    same_trigger: float

    @property
    def span_kl(self) -> float:
        """For one part of the replies."""
        return 3 * self.kl

    @property
    def long_kl(self) -> float:
        """For the one long text."""
        return 3 * self.kl


CAST, NEAR, CLOSE, FP8, FIVE, FOUR, REST = (
    Limits(0.001, 0.90), Limits(0.01, 0.90), Limits(0.02, 0.90), Limits(0.03, 0.90),
    Limits(0.03, 0.85), Limits(0.08, 0.80), Limits(0.20, 0.75),
)  # fmt: skip
LIMITS = {
    **dict.fromkeys(("F32", "F16", "BF16"), CAST),
    "Q8_0": NEAR,
    "Q6_K": CLOSE,
    **dict.fromkeys(
        ("FP8_DYNAMIC", "FP8_BLOCK", "FP8_TENSOR", "FP8", "W8A8", "W8A16", SERVED), FP8
    ),
    **dict.fromkeys(("Q5_K_M", "Q5_K_S", "Q5_K", "Q5_0", "Q5_1"), FIVE),
    **dict.fromkeys(("Q4_K_M", "Q4_K_S", "Q4_K", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL"), FOUR),
}
"""By the type's name; one that is not listed gets REST."""


def limits_of(type_name: str) -> Limits:
    """What is asked of artifacts of a type."""
    return LIMITS.get(type_name, REST)
