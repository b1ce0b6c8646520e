"""Log-probabilities as checks: what the artifact thinks of the reference's text, token by token.

In: `Evidence` whose reference and artifact were both scored (`teacher_forcing.py`). Out: Outcomes:

    chat_kl       mean KL divergence over prompts' tokens
    reply_kl      the same over the reference's replies, and over each part of them (`spans.py`)
    trigger       the decision at a reply's first token: a tool call or not; how many turn
    log_prob      mean log-probability that is lost on the reference's replies
    long_context  mean KL divergence beyond the length the rope was made for

Means are a token; their 95 % intervals come from resampling prompts, because the tokens of a prompt
are not independent. A mean passes if its interval is within the limit, fails if the interval is
beyond it. What the reference differs by from itself is added to every limit (`noise_floor.py`).

The limits reject broken artifacts. They do not rank good ones: near the reference, KL divergence no
longer predicts scores (arXiv 2606.19558), which is why answers are compared as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from verify.bootstrap import Mean, mean_by_prompt
from verify.check import Finding, Number, Outcome, Point, State, Verdict, finite, total_state
from verify.distributions import kl_per_token, trigger_margin
from verify.engines.log_probabilities import Floats, Scored
from verify.evidence import Evidence, Reference, TeacherForced
from verify.gate import Thresholds
from verify.noise_floor import Floor, check_noise_floor, measure_floor
from verify.spans import Span, label_tokens
from verify.statistics import count
from verify.teacher_forcing import watched_ids

FINDINGS_SHOWN = 20
WIDER = 3
"""One part of a reply, and the one long text, have few tokens: their limit is so many times `kl`. A
wrong rope base costs the long text more than 1 nat."""
MIN_PROMPTS_OF_SPAN = 8
"""Fewer prompts than this with a part of replies in them do not decide about it."""


def check_log_probabilities(evidence: Evidence, /) -> tuple[Outcome, ...]:
    """Every check of this file; none if the reference was not scored."""
    base, forced = evidence.reference.forced, evidence.forced
    if base is None or forced is None:
        return ()
    if isinstance(forced, str):
        return (Outcome("log_probabilities", Verdict(State.NOT_ENOUGH_EVIDENCE, forced)),)
    pairs = _Pairs(
        evidence.reference, evidence.thresholds, _as_far(base, forced), forced, measure_floor(base)
    )
    checks = (check_chat_kl, check_reply_kl, check_trigger, check_log_prob, check_long_context)
    floor = check_noise_floor(base, evidence.thresholds)
    return (floor, *(check(pairs) for check in checks))


def _as_far(base: TeacherForced, forced: TeacherForced) -> TeacherForced:
    """The reference over what the artifact was scored on, of a prompt perhaps only the end."""
    cut = [
        ours.part(slice(len(ours.targets) - len(theirs.targets), None))
        for ours, theirs in zip(base.scored, forced.scored, strict=True)
    ]
    return replace(base, scored=tuple(cut))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Both models along the same text."""

    reference: Reference
    asked: Thresholds
    base: TeacherForced
    forced: TeacherForced
    floor: Floor

    def replies(self) -> list[tuple[int, Scored, Scored]]:
        """Of every conversation its index and the scores of both along the reply."""
        return [
            (index, ours.part(rows), theirs.part(rows))
            for index, ours, theirs in zip(
                self.base.conversations, self.base.scored, self.forced.scored, strict=True
            )
            for rows in (slice(-len(self.reference.answers[index].ids), None),)
        ]

    def noise(self) -> float:
        """What the reference differs by from itself: added to every limit."""
        return self.floor.nats


def check_chat_kl(pairs: _Pairs) -> Outcome:
    """KL divergence over the prompts that were scored whole."""
    found: list[Floats] = []
    for index, ours, theirs in zip(
        pairs.base.conversations, pairs.base.scored, pairs.forced.scored, strict=True
    ):
        prompt_rows = len(ours.targets) - len(pairs.reference.answers[index].ids)
        if prompt_rows:
            found.append(kl_per_token(ours, theirs)[:prompt_rows])
    return _judge_kl("chat_kl", "prompts", pairs, found)


def check_reply_kl(pairs: _Pairs) -> Outcome:
    """KL divergence over replies, and over each of their parts."""
    replies = pairs.replies()
    kl = [kl_per_token(ours, theirs) for _, ours, theirs in replies]
    limit = WIDER * pairs.asked.kl + pairs.noise()
    outcome = _judge_kl("reply_kl", "replies", pairs, kl)
    labels = [_labels(pairs.reference, index) for index, _, _ in replies]
    states, numbers = [outcome.verdict.state], dict(outcome.verdict.numbers)
    findings: list[Finding] = []
    for span in Span:
        parts = [k[of == span.value] for k, of in zip(kl, labels, strict=True)]
        mean = mean_by_prompt([part for part in parts if part.size])
        if not mean.values:
            continue
        numbers |= _numbers(f"{span.value}_kl", mean)
        if mean.prompts >= MIN_PROMPTS_OF_SPAN and mean.decide(limit) is State.FAIL:
            states.append(State.FAIL)
            findings.append(Finding(span.value, f"KL {mean}; limit {limit:.4g}"))
    numbers |= {"span_limit": limit, **_same_choice(replies)}
    findings += _worst(pairs.reference, replies, kl, labels)
    verdict = Verdict(total_state(states), outcome.verdict.reason, numbers)
    return Outcome("reply_kl", verdict, tuple(findings[:FINDINGS_SHOWN]))


def check_trigger(pairs: _Pairs) -> Outcome:
    """Whether a greedy decoder would call where the reference calls, and only there."""
    token, floor = watched_ids(pairs.reference), pairs.asked.same_trigger
    margins: list[tuple[str, float, float]] = []
    for index, ours, theirs in pairs.replies():
        conversation = pairs.reference.conversations[index]
        if token and conversation.tools:
            first = slice(0, 1)
            a, b = (trigger_margin(s.part(first), token[0])[0] for s in (ours, theirs))
            if not np.isnan(b):
                margins.append((conversation.id, float(a), float(b)))
    same = count([(a > 0) == (b > 0) for _, a, b in margins])
    low, high = same.interval
    turned = [m for m in margins if (m[1] > 0) != (m[2] > 0)]
    findings = [Finding(i, f"margin {a:+.2f} became {b:+.2f} nats") for i, a, b in turned]
    state = same.decide(floor) if margins else State.NOT_ENOUGH_EVIDENCE
    shift = mean_by_prompt([np.array([b - a]) for _, a, b in margins])
    numbers = {
        "same": same.hits, "with_tools": same.total, "same_low": low, "same_high": high,
        "calls": sum(a > 0 for _, a, _ in margins), "floor": floor, **_numbers("shift", shift),
        "smallest_margin": min((abs(a) for _, a, _ in margins), default=None),
    }  # fmt: skip
    reason = f"same first decision {same.hits} of {same.total}; floor {floor:.2f}"
    if not margins:
        reason = "no conversation with tools whose first token could be compared"
    points = tuple(
        Point(name, {"reference": finite(a), "artifact": finite(b)}) for name, a, b in margins
    )
    verdict = Verdict(state, reason, numbers)
    return Outcome("trigger", verdict, tuple(findings[:FINDINGS_SHOWN]), points)


def check_log_prob(pairs: _Pairs) -> Outcome:
    """What the replies' own tokens lose: exp of it is the ratio of perplexities."""
    lost = [
        (ours.log_prob_of(ours.targets) - given)[~np.isnan(given)]
        for _, ours, theirs in pairs.replies()
        for given in (theirs.log_prob_of(theirs.targets),)  # NaN where a server does not name it
    ]
    mean = mean_by_prompt([part for part in lost if part.size])
    limit = pairs.asked.kl + pairs.noise()
    numbers = {**_numbers("lost", mean), "limit": limit, "perplexity_ratio": mean.exp()}
    reason = f"log-probability lost {mean}; limit {limit:.4g}"
    return Outcome("log_prob", Verdict(mean.decide(limit), reason, numbers))


def check_long_context(pairs: _Pairs) -> Outcome:
    """KL divergence at the end of one long text; its limit is wide, as there is only one."""
    kl = kl_per_token(pairs.base.long, pairs.forced.long)
    limit = WIDER * pairs.asked.kl + pairs.noise()
    value = float(kl.mean())
    finite = bool(np.isfinite(value))
    state = State.PASS if value <= limit else State.FAIL
    numbers: dict[str, Number] = {
        "kl": value if finite else None, "tokens": len(kl), "limit": limit,
    }  # fmt: skip
    return Outcome("long_context", Verdict(state, f"KL {value:.4g}; limit {limit:.4g}", numbers))


def _judge_kl(name: str, what: str, pairs: _Pairs, kl: Sequence[Floats]) -> Outcome:
    noise = pairs.noise()
    limit = pairs.asked.kl + noise
    mean = mean_by_prompt(kl)
    numbers = {**_numbers("kl", mean), "limit": limit, "noise": noise}
    reason = f"KL over {mean.values} tokens of {mean.prompts} {what} {mean}; limit {limit:.4g}"
    return Outcome(name, Verdict(mean.decide(limit), reason, numbers))


def _numbers(name: str, mean: Mean) -> dict[str, Number]:
    return {
        **mean.numbers(name), f"{name}_tokens": mean.values, f"{name}_prompts": mean.prompts,
    }  # fmt: skip


def _same_choice(replies: Sequence[tuple[int, Scored, Scored]]) -> dict[str, Number]:
    same = [np.equal(ours.best[:, 0], theirs.best[:, 0]) for _, ours, theirs in replies]
    return {"same_top": int(sum(s.sum() for s in same))}


def _labels(reference: Reference, index: int) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    answer = reference.answers[index]
    spans = label_tokens(reference.tokenizer, answer.ids, finished=answer.finished)
    return np.array([span.value for span in spans])


def _worst(
    reference: Reference,
    replies: Sequence[tuple[int, Scored, Scored]],
    kl: Sequence[Floats],
    labels: Sequence[np.ndarray[tuple[int], np.dtype[np.str_]]],
) -> list[Finding]:
    """Tokens where the artifact would say something else, worst first."""
    found: list[tuple[float, Finding]] = []
    for (index, ours, theirs), of_token, spans in zip(replies, kl, labels, strict=True):
        for place in np.flatnonzero(ours.best[:, 0] != theirs.best[:, 0]):
            a, b = (reference.tokenizer.decode([int(s.best[place, 0])]) for s in (ours, theirs))
            message = f"token {place} ({spans[place]}): {b!r} for {a!r}, KL {of_token[place]:.3f}"
            name = reference.conversations[index].id
            found.append((float(of_token[place]), Finding(name, message)))
    return [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]
