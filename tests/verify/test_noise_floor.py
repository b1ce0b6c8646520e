"""The noise floor: each limit above its own, and what is about rounding decides nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.verify.conftest import NANO
from tests.verify.test_logits import asked
from verify.agreement import check_agreement
from verify.artifact import open_artifact
from verify.asked_again import answers_again, measure_decisions
from verify.check import State, Verdict
from verify.engines.log_probabilities import Scored
from verify.equality import Tier
from verify.evidence import Evidence, Reference, TeacherForced
from verify.logits import check_log_probabilities
from verify.noise_floor import measure_floor
from verify.suite import spread
from verify.teacher_forcing import AGAIN, PROMPTS, choose_again

PROMPTS_ONLY, REPLIES_ONLY = "prompts", "replies"


def with_forced(nano: Reference, **changes: object) -> Reference:
    assert nano.forced is not None
    return replace(nano, forced=replace(nano.forced, **changes))  # type: ignore[arg-type]


def found(reference: Reference, forced: TeacherForced | None = None) -> dict[str, Verdict]:
    """Every check, of an artifact that is the reference or scores as `forced`."""
    given = asked(reference, open_artifact(NANO), forced=forced or reference.forced)
    return {outcome.check: outcome.verdict for outcome in check_log_probabilities(given)}


def worse(nano: Reference, part: str) -> tuple[Scored, ...]:
    """What was scored again with half a nat lost at every token of one part."""
    base = nano.forced
    assert base is not None
    changed = []
    for at, scored in zip(base.again, base.scored_again, strict=True):
        reply = len(nano.answers[base.conversations[at]].ids)
        rows = slice(0, -reply) if part == PROMPTS_ONLY else slice(-reply, None)
        log_probs = scored.log_probs.copy()
        log_probs[rows] -= 0.5
        changed.append(replace(scored, log_probs=log_probs))
    return tuple(changed)


def test_the_reference_differs_from_itself_by_its_batch_alone(nano: Reference) -> None:
    checks = found(nano)
    assert checks["chat_kl"].numbers["kl"] == 0
    floor = checks["noise_floor"].numbers
    for part, check in (("prompts", "chat_kl"), ("replies", "reply_kl"), ("replies", "log_prob")):
        itself, narrow = floor[f"{part}_itself"], floor[f"{part}_in_16_bits"]
        assert isinstance(itself, float)
        assert isinstance(narrow, float)
        assert 0 < itself < 1e-9 < narrow < 1e-2
        assert floor[f"{part}_floor"] == narrow
        limit = checks[check].numbers["limit"]
        assert limit == pytest.approx(asked(nano, open_artifact(NANO)).thresholds.kl + narrow)
    # a reply is nearly certain, a prompt is not: one floor for both was far too wide for replies
    assert 100 * floor["replies_floor"] < floor["prompts_floor"]  # type: ignore[operator]
    long = floor["long_in_16_bits"]
    assert isinstance(long, float)
    thresholds = asked(nano, open_artifact(NANO)).thresholds
    assert checks["long_context"].numbers["limit"] == pytest.approx(3 * thresholds.kl + long)


@pytest.mark.parametrize("chosen", [1, 5, 8, 23, 24, 25, 64, 80])
def test_what_is_scored_again_has_a_prompt_and_a_reply(chosen: int) -> None:
    again = choose_again(chosen)
    assert set(again) <= set(spread(chosen, PROMPTS))
    assert len(set(again)) == min(chosen, AGAIN)
    if chosen == 80:
        assert max(again) - min(again) > 60, "spread over the suite"


def test_both_kinds_of_tokens_and_of_conversations_are_scored_again(nano: Reference) -> None:
    base = nano.forced
    assert base is not None
    indices = [base.conversations[at] for at in base.again]
    assert len({bool(nano.conversations[index].tools) for index in indices}) == 2
    for index, scored in zip(indices, base.scored_again, strict=True):
        assert len(scored.targets) > len(nano.answers[index].ids) > 0


@pytest.mark.parametrize(
    ("part", "raised", "kept"),
    [
        (PROMPTS_ONLY, ["chat_kl"], ["reply_kl", "log_prob", "long_context"]),
        (REPLIES_ONLY, ["reply_kl", "log_prob"], ["chat_kl", "long_context"]),
    ],
)
def test_noise_in_one_part_raises_the_limits_of_that_part_alone(
    nano: Reference, part: str, raised: list[str], kept: list[str]
) -> None:
    noisy = with_forced(nano, narrow=worse(nano, part))
    before, after = found(nano), found(noisy)

    def limit(checks: dict[str, Verdict], name: str) -> float:
        return float(str(checks[name].numbers["limit"]))

    for name in raised:
        assert limit(after, name) > limit(before, name) + 0.4
    for name in kept:
        assert limit(after, name) <= limit(before, name)
    assert after["noise_floor"].state is State.NOT_ENOUGH_EVIDENCE


def test_a_limit_below_the_noise_floor_decides_nothing(nano: Reference) -> None:
    given = asked(nano, open_artifact(NANO), forced=nano.forced)
    outcome = check_log_probabilities(given)[0]
    assert (outcome.check, outcome.verdict.state) == ("noise_floor", State.PASS)
    narrow = outcome.verdict.numbers["prompts_in_16_bits"]
    assert isinstance(narrow, float)
    strict = given.thresholds.model_copy(update={"kl": narrow / 2})
    outcome = check_log_probabilities(replace(given, thresholds=strict))[0]
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert "is below that" in outcome.verdict.reason
    assert outcome.verdict.reason.endswith("no number of prompts changes that")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_reference_that_overflows_in_16_bits_has_no_floor_and_decides_nothing(
    nano: Reference, value: float
) -> None:
    assert nano.forced is not None
    narrow = tuple(replace(s, log_tail=s.log_tail + value) for s in nano.forced.narrow)
    checks = found(with_forced(nano, narrow=narrow), nano.forced)
    assert checks["noise_floor"].state is State.NOT_ENOUGH_EVIDENCE
    assert "an unknown amount and an unknown amount from itself in 16 bits" in (
        checks["noise_floor"].reason
    )
    assert checks["noise_floor"].numbers["replies_in_16_bits"] is None
    kl = asked(nano, open_artifact(NANO)).thresholds.kl
    assert checks["chat_kl"].numbers["limit"] == pytest.approx(kl, abs=1e-6)
    unmeasured = with_forced(nano, alone=(), narrow=(), long_narrow=None)
    assert found(unmeasured)["noise_floor"].state is State.NOT_ENOUGH_EVIDENCE


def test_a_long_text_that_overflows_in_16_bits_is_no_floor_either(nano: Reference) -> None:
    assert nano.forced is not None
    long = nano.forced.long_narrow
    assert long is not None
    broken = with_forced(nano, long_narrow=replace(long, log_tail=long.log_tail * np.nan))
    checks = found(broken, nano.forced)
    assert checks["noise_floor"].state is State.NOT_ENOUGH_EVIDENCE
    assert checks["noise_floor"].numbers["long_in_16_bits"] is None


def test_the_reference_makes_its_own_calls_again_and_an_artifact_is_shown_beside_it(
    nano: Reference,
) -> None:
    again = answers_again(nano, Tier.JSON)
    assert again is not None
    assert nano.forced is not None
    indices = [nano.forced.conversations[at] for at in nano.forced.again]
    assert again.alone.total == sum(bool(nano.conversations[i].tools) for i in indices) >= 4
    assert again.alone.hits == again.alone.total == again.narrow.total
    evidence = Evidence(nano, open_artifact(NANO), asked(nano, open_artifact(NANO)).thresholds,
                        answers=nano.answers)  # fmt: skip
    verdict = check_agreement(evidence).verdict
    assert verdict.numbers["reference_again"] == again.alone.total
    assert verdict.numbers["reference_same_alone"] == again.alone.hits
    assert f"the reference makes its own again in {again}" in verdict.reason


def test_a_reference_that_does_not_make_its_own_calls_decides_nothing(nano: Reference) -> None:
    """Asked again, it says nothing at all: an artifact that differs from it may be no worse."""
    assert nano.forced is not None
    silent = with_forced(nano, answered_alone=((2,),) * len(nano.forced.again))
    again = answers_again(silent, Tier.JSON)
    assert again is not None
    assert again.alone.hits < again.alone.total / 2
    checks = found(silent)
    assert checks["noise_floor"].state is State.NOT_ENOUGH_EVIDENCE
    assert f"asked again, it makes its own calls in {again}" in checks["noise_floor"].reason


def test_a_reply_asked_again_is_read_after_its_own_prompt(nano: Reference) -> None:
    """A few are asked again: the second of them is no reply to the suite's second prompt."""
    assert nano.forced is not None
    indices = {nano.forced.conversations[at] for at in nano.forced.again}
    places = range(len(nano.forced.again))
    opening = nano.tokenizer.encode("<think>")
    prompts = tuple(
        [*prompt, *opening] if i in places and i not in indices else prompt
        for i, prompt in enumerate(nano.prompts)
    )
    mixed = replace(nano, prompts=prompts)
    assert any(mixed.opened(i) for i in places)
    assert answers_again(mixed, Tier.JSON) == answers_again(nano, Tier.JSON)


def test_decisions_nearer_to_turning_than_they_moved_are_counted(nano: Reference) -> None:
    decisions = measure_decisions(nano)
    assert decisions is not None
    assert decisions.turned_alone == decisions.turned_narrow == 0
    assert 0 < decisions.shift < 1
    assert decisions.within <= decisions.all // 20
    assert nano.forced is not None
    # in 16 bits the tag is 30 nats less likely: more than any margin is wide
    token = nano.tokenizer.token_id("<tool_call>")
    moved = tuple(
        replace(s, log_probs=np.where(s.candidates == token, s.log_probs - 30, s.log_probs))
        for s in nano.forced.narrow
    )
    noisy = with_forced(nano, narrow=moved)
    decisions = measure_decisions(noisy)
    assert decisions is not None
    assert decisions.turned_narrow > 0
    assert decisions.within > decisions.all / 2
    verdict = found(noisy, nano.forced)["noise_floor"]
    assert verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert f"{decisions.within} of {decisions.all} decisions to call could turn" in verdict.reason
    beside = found(noisy, nano.forced)["trigger"].numbers
    assert beside["decisions_within_shift"] == decisions.within
    assert beside["decision_shift"] == decisions.shift


def test_what_was_not_asked_again_has_no_floor(nano: Reference) -> None:
    assert answers_again(replace(nano, forced=None), Tier.JSON) is None
    assert measure_decisions(with_forced(nano, alone=(), narrow=())) is None
    bare = measure_floor(with_forced(nano, alone=(), narrow=(), long_narrow=None))
    assert (bare.known, bare.prompts.nats, bare.long.nats) == (False, 0, 0)
