"""One word for every pair of replies, by what the artifact made of the reference's."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.verify.replies import TOOLS, Edit, always, answer, call, digits_confused, evidence_of
from verify.agreement import check_agreement
from verify.differences import differences
from verify.equality import Tier, tier_of_replies, within
from verify.evidence import Answer, Reference
from verify.pair_outcomes import FAITHFUL, PairOutcome, count_pairs, pair_outcome

OTHER = call(1).replace('"f"', '"g"')
SINGLE_QUOTES = call(1).replace('"', "'")
LOST = "<tool_call>oops</tool_call>"
WORDS = [
    (call(1), call(1), PairOutcome.IDENTICAL),
    ("No.", "No.", PairOutcome.IDENTICAL),
    (call(1), call(1).replace(", ", ","), PairOutcome.SAME_CALL),
    (call(1), "Here: " + call(1), PairOutcome.SAME_CALL),
    (call(1) + call(2), call(2) + call(1), PairOutcome.SAME_CALL),
    ("No.", "Never.", PairOutcome.OTHER_TEXT),
    ("<think>a</think>No.", "<think>b</think>No.", PairOutcome.OTHER_TEXT),
    (call(1), call(2), PairOutcome.ARGUMENTS),
    (call(1) + call(2), call(1) + call(3), PairOutcome.ARGUMENTS),
    (call(1), OTHER, PairOutcome.TOOL),
    (call(1) + call(2), call(1) + OTHER, PairOutcome.TOOL),
    (call(1), call(1) * 2, PairOutcome.COUNT),
    (call(1) + OTHER, OTHER, PairOutcome.COUNT),
    (call(1), "No.", PairOutcome.LOST),
    (call(1), "<think>f, f, f", PairOutcome.LOST),
    ("No.", call(1), PairOutcome.NEW),
    ("<think>f, f, f", call(1), PairOutcome.NEW),
    (call(1), SINGLE_QUOTES, PairOutcome.MALFORMED),
    (SINGLE_QUOTES, call(1), PairOutcome.MALFORMED),
    ("No.", LOST, PairOutcome.MALFORMED),
    (LOST, "<tool_call>ouch</tool_call>", PairOutcome.MALFORMED),
    (SINGLE_QUOTES, "So: " + SINGLE_QUOTES, PairOutcome.SAME_CALL),
    ("No.", "<think>f, f, f", PairOutcome.NO_ANSWER),
    ("<think>f, f, f", "No.", PairOutcome.NO_ANSWER),
    ("<think>f, f, f", "<think>g, g, g", PairOutcome.NO_ANSWER),
]


@pytest.mark.parametrize(("ours", "theirs", "word"), WORDS)
def test_the_word_for_a_pair(ours: str, theirs: str, word: PairOutcome) -> None:
    assert pair_outcome(answer(ours), answer(theirs), TOOLS, Tier.JSON) is word


def test_every_word_is_used() -> None:
    assert {word for *_, word in WORDS} == set(PairOutcome)


def test_a_looser_tier_makes_more_calls_the_same() -> None:
    ours, theirs = answer(call(1)), answer(call(1).replace("1,", "1.0,"))
    assert pair_outcome(ours, theirs, TOOLS, Tier.JSON) is PairOutcome.ARGUMENTS
    assert pair_outcome(ours, theirs, TOOLS, Tier.NUMERIC) is PairOutcome.SAME_CALL


@pytest.mark.parametrize(("ours", "theirs", "word"), WORDS)
def test_the_faithful_words_are_those_that_agreement_counts(
    ours: str, theirs: str, word: PairOutcome
) -> None:
    tier = tier_of_replies(answer(ours).reply, answer(theirs).reply, TOOLS)
    assert within(tier, Tier.JSON) is (word in FAITHFUL)


def pairs_of(reference: Reference, edit: Edit) -> tuple[list[tuple[Answer, Answer]], Reference]:
    """Of a reference whose sevens are ones, and an artifact that answers by `edit`."""
    evidence = evidence_of(reference, edit, first=digits_confused)
    assert evidence.answers is not None
    pairs = list(zip(evidence.reference.answers, evidence.answers, strict=True))
    assert len(pairs) == 500
    shown = check_agreement(evidence).verdict.numbers["same_calls"]
    counts = count_pairs(evidence.reference.conversations, pairs, Tier.JSON)
    changed = sum(counts[w] for w in PairOutcome if w not in FAITHFUL)
    assert changed == 200 - int(shown or 0), "only prompts with tools changed their calls"
    return pairs, evidence.reference


def test_two_wrong_replies_that_differ_are_no_faithful_pair(reference: Reference) -> None:
    """Both have another argument than is due; the artifact's is not the reference's."""

    def eights(name: str, right: str) -> str:
        return right.replace("7", "8") if name.startswith("tool") else right

    pairs, base = pairs_of(reference, eights)
    counts = count_pairs(base.conversations, pairs, Tier.JSON)
    wrong = sum("7" in json.dumps(c.messages) for c in base.conversations if c.tools and
                c.id.startswith("tool"))  # fmt: skip
    assert counts["different arguments"] == wrong > 10
    assert counts["identical"] == 500 - wrong
    found = differences(base.conversations, pairs)
    assert {d.reference_outcome for d in found} == {d.artifact_outcome for d in found}
    assert Counter(d.pair for d in found) == {"different arguments": wrong}


def test_every_pair_of_a_suite_is_counted_once_under_one_word(reference: Reference) -> None:
    pairs, base = pairs_of(reference, always("Sorry, no.", "tool"))
    counts = count_pairs(base.conversations, pairs, Tier.JSON)
    assert list(counts) == [word.value for word in PairOutcome]
    assert sum(counts.values()) == 500
    assert (counts["lost call"], counts["identical"]) == (100, 400)
    assert count_pairs((), [], Tier.JSON) == {}
