"""Log-probabilities as checks: what the artifact thinks of the reference's text, token by token.

In: `Evidence` whose reference and artifact were both scored (`teacher_forcing.py`). Out: Outcomes:

    chat_kl       mean KL divergence over prompts' tokens
    reply_kl      the same over the reference's replies, and over each part of them (`spans.py`)
    trigger       the decision to call or not, where the answer begins (`trigger.py`)
    log_prob      mean log-probability that is lost on the reference's replies
    long_context  mean KL divergence beyond the length the rope was made for

Means are a token; their 95 % intervals come from resampling conversations (`bootstrap.py`). A mean
passes if its interval is within the limit, fails if the interval is beyond it, and is otherwise not
enough evidence, with the number of prompts that would be. What the reference differs by from itself
is added to every limit, over prompts, replies and the long text apart (`noise_floor.py`).

The limits reject broken artifacts. They do not rank good ones: near the reference, KL divergence no
longer predicts scores (arXiv 2606.19558), which is why answers are compared as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from verify.asked_again import measure_decisions
from verify.bootstrap import LEAST, Mean, mean_by_prompt
from verify.check import Finding, Number, Outcome, State, Verdict, total_state
from verify.distributions import kl_per_token
from verify.engines.log_probabilities import Floats, Scored
from verify.evidence import Evidence, Reference, TeacherForced
from verify.gate import Thresholds
from verify.noise_floor import Floor, check_noise_floor, measure_floor
from verify.spans import Span, label_tokens
from verify.statistics import say_needed
from verify.trigger import check_trigger

FINDINGS_SHOWN = 20


def check_log_probabilities(evidence: Evidence, /) -> tuple[Outcome, ...]:
    """Every check of this file; none if the reference was not scored."""
    base, forced = evidence.reference.forced, evidence.forced
    if isinstance(forced, str):
        return (Outcome("log_probabilities", Verdict(State.NOT_ENOUGH_EVIDENCE, forced)),)
    if base is None or forced is None:
        return ()
    reference, asked = evidence.reference, evidence.thresholds
    decisions = measure_decisions(reference)
    pairs = _Pairs(reference, asked, _as_far(base, forced), forced, measure_floor(reference))
    return (
        check_noise_floor(reference, asked),
        check_chat_kl(pairs),
        check_reply_kl(pairs),
        check_trigger(reference, asked, pairs.replies(), decisions.numbers() if decisions else {}),
        check_log_prob(pairs),
        check_long_context(pairs),
    )


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

    def mean(self, found: Sequence[tuple[int, Floats]]) -> Mean:
        """Of values by conversation, those without a value left out."""
        kept = [(index, values) for index, values in found if values.size]
        names = [self.reference.conversations[index].first_id for index, _ in kept]
        return mean_by_prompt([values for _, values in kept], names)


def check_chat_kl(pairs: _Pairs) -> Outcome:
    """KL divergence over the prompts that were scored whole."""
    found = []
    for index, ours, theirs in zip(
        pairs.base.conversations, pairs.base.scored, pairs.forced.scored, strict=True
    ):
        prompt_rows = len(ours.targets) - len(pairs.reference.answers[index].ids)
        found.append((index, kl_per_token(ours, theirs)[:prompt_rows]))
    return _judge_kl("chat_kl", "prompts", pairs, pairs.mean(found), pairs.floor.prompts.nats)


def check_reply_kl(pairs: _Pairs) -> Outcome:
    """KL divergence over replies, and over each of their parts."""
    replies = pairs.replies()
    found = [(index, kl_per_token(ours, theirs)) for index, ours, theirs in replies]
    noise = pairs.floor.replies.nats
    outcome = _judge_kl("reply_kl", "replies", pairs, pairs.mean(found), noise)
    labels = [_labels(pairs.reference, index) for index, _ in found]
    limit = pairs.asked.wide_kl + noise
    states, reason = [outcome.verdict.state], outcome.verdict.reason
    numbers, findings = dict(outcome.verdict.numbers), []
    for span in Span:
        every = zip(found, labels, strict=True)
        mean = pairs.mean([(index, kl[of == span.value]) for (index, kl), of in every])
        if mean.values:
            numbers |= _numbers(f"{span.value}_kl", mean)
            state, words = _judge_span(span, mean, limit)
            states.append(state)
            reason += words
            if state is State.FAIL:
                findings.append(Finding(span.value, f"KL {mean}; limit {limit:.4g}"))
    numbers |= {"span_limit": limit, **_same_choice(replies)}
    findings += _worst(pairs.reference, replies, [kl for _, kl in found], labels)
    verdict = Verdict(total_state(states), reason, numbers)
    return Outcome("reply_kl", verdict, tuple(findings[:FINDINGS_SHOWN]))


def _judge_span(span: Span, mean: Mean, limit: float) -> tuple[State, str]:
    """One part of the replies, and what a sentence adds; few prompts with it decide nothing."""
    if mean.conversations < LEAST:
        return State.PASS, f"; too few to judge {span.value}: {mean.conversations}"
    state = mean.decide(limit)
    if state is not State.NOT_ENOUGH_EVIDENCE:
        return state, ""
    needed = say_needed(mean.needed(limit), mean.prompts)
    return state, f"; {span.value} {mean}, which holds its limit {limit:.4g}: {needed}"


def check_log_prob(pairs: _Pairs) -> Outcome:
    """What the replies' own tokens lose: exp of it is the ratio of perplexities."""
    lost = [
        (index, less[~np.isnan(less)])
        for index, ours, theirs in pairs.replies()
        for less in (ours.log_prob_of(ours.targets) - theirs.log_prob_of(theirs.targets),)
        # NaN where a server does not name it
    ]
    mean = pairs.mean(lost)
    limit = pairs.asked.kl + pairs.floor.replies.nats
    numbers = {
        **_numbers("lost", mean), "limit": limit, "perplexity_ratio": mean.exp(),
        "prompts_needed": mean.needed(limit),
    }  # fmt: skip
    reason = f"log-probability lost {mean}; limit {limit:.4g}"
    return Outcome("log_prob", _verdict(mean, limit, reason, numbers))


def check_long_context(pairs: _Pairs) -> Outcome:
    """KL divergence at the end of one long text; its limit is wide, as there is only one."""
    if pairs.forced.no_long:
        return Outcome("long_context", Verdict(State.NOT_ENOUGH_EVIDENCE, pairs.forced.no_long))
    kl = kl_per_token(pairs.base.long, pairs.forced.long)
    limit = pairs.asked.wide_kl + pairs.floor.long.nats
    value = float(kl.mean())
    finite = bool(np.isfinite(value))
    state = State.PASS if value <= limit else State.FAIL
    numbers: dict[str, Number] = {
        "kl": value if finite else None, "tokens": len(kl), "limit": limit,
    }  # fmt: skip
    return Outcome("long_context", Verdict(state, f"KL {value:.4g}; limit {limit:.4g}", numbers))


def _judge_kl(name: str, what: str, pairs: _Pairs, mean: Mean, noise: float) -> Outcome:
    limit = pairs.asked.kl + noise
    numbers = {
        **_numbers("kl", mean),
        "limit": limit,
        "noise": noise,
        "prompts_needed": mean.needed(limit),
    }
    reason = f"KL over {mean.values} tokens of {mean.prompts} {what} {mean}; limit {limit:.4g}"
    return Outcome(name, _verdict(mean, limit, reason, numbers))


def _verdict(mean: Mean, limit: float, reason: str, numbers: Mapping[str, Number]) -> Verdict:
    state = mean.decide(limit)
    if state is State.NOT_ENOUGH_EVIDENCE:
        reason += f": {say_needed(mean.needed(limit), mean.prompts)}"
    return Verdict(state, reason, numbers)


def _numbers(name: str, mean: Mean) -> dict[str, Number]:
    return {
        **mean.numbers(name), f"{name}_tokens": mean.values, f"{name}_prompts": mean.prompts,
    }  # fmt: skip


def _same_choice(replies: Sequence[tuple[int, Scored, Scored]]) -> dict[str, Number]:
    same = [np.equal(ours.best[:, 0], theirs.best[:, 0]) for _, ours, theirs in replies]
    return {"same_top": int(sum(s.sum() for s in same))}


def _labels(reference: Reference, index: int) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    answer = reference.answers[index]
    spans = label_tokens(
        reference.tokenizer, answer.ids, finished=answer.finished, opened=reference.opened(index)
    )
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
