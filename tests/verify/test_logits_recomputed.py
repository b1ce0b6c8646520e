"""Every number of the checks on log-probabilities, computed a second time in another way."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.verify.test_logits import asked, score_artifact_of
from verify.artifact import open_artifact
from verify.engines.log_probabilities import Scored
from verify.evidence import Reference
from verify.logits import check_log_probabilities
from verify.spans import Span, label_tokens
from verify.teacher_forcing import watched_ids


def kl_again(ours: Scored, theirs: Scored) -> list[float]:
    """The divergence of every token, written down a second time, number by number."""
    found = []
    for p, q, p_tail, q_tail in zip(
        ours.log_probs.tolist(), theirs.log_probs.tolist(),
        ours.log_tail.tolist(), theirs.log_tail.tolist(), strict=True,
    ):  # fmt: skip
        pairs = [*zip(p, q, strict=True), (p_tail, q_tail)]
        found.append(max(0.0, math.fsum(math.exp(a) * (a - b) for a, b in pairs)))
    return found


def mean_and_rough_interval(prompts: list[list[float]]) -> tuple[float, float, float]:
    """A mean over tokens, and its interval from resampling prompts with another generator."""
    rng = random.Random(5)
    means = []
    for _ in range(600):
        drawn = [rng.choice(prompts) for _ in prompts]
        means.append(sum(map(sum, drawn)) / sum(map(len, drawn)))
    means.sort()
    return sum(map(sum, prompts)) / sum(map(len, prompts)), means[15], means[584]


def floors_again(nano: Reference) -> dict[str, float]:
    """What the reference differs by from itself, over prompts and over replies."""
    base, floors = nano.forced, {}
    assert base is not None
    once = [base.scored[position] for position in base.again]
    sizes = [len(nano.answers[base.conversations[position]].ids) for position in base.again]
    for form, twice in (("itself", base.alone), ("in_16_bits", base.narrow)):
        apart = [kl_again(a, b) for a, b in zip(once, twice, strict=True)]
        assert len(apart) == 8
        before = [kl for kls, n in zip(apart, sizes, strict=True) for kl in kls[: len(kls) - n]]
        after = [kl for kls, n in zip(apart, sizes, strict=True) for kl in kls[len(kls) - n :]]
        floors[f"prompts_{form}"] = sum(before) / len(before)
        floors[f"replies_{form}"] = sum(after) / len(after)
    return floors


def check_turned(trigger: Mapping[str, Any], margins: list[tuple[str, float, float]]) -> None:
    for way, kind in (("off", True), ("on", False)):
        of = [(a > 0) != (b > 0) for _, a, b in margins if (a > 0) is kind]
        assert trigger[f"calls_turned_{way}"] == sum(of)
        assert trigger[f"calls_turned_{way}_of"] == len(of)
        assert trigger[f"calls_turned_{way}_rate"] == sum(of) / len(of)


def check_needed(stated: Mapping[str, Any], key: str) -> None:
    gap = stated["limit"] - stated[key]
    half = stated[f"{key}_high"] - stated[key]
    assert gap > 0
    needed = math.ceil(stated[f"{key}_prompts"] * (half / gap) ** 2)
    assert stated["prompts_needed"] == max(8, needed)


def test_every_number_recomputed(nano: Reference, made: dict[str, Path]) -> None:
    """From the log-probabilities alone, with formulas written down here a second time."""
    forced, base = score_artifact_of(nano, made["Q4_K_M"]), nano.forced
    assert base is not None
    evidence = asked(nano, open_artifact(made["Q4_K_M"]), forced=forced)
    outcomes = {o.check: o for o in check_log_probabilities(evidence)}
    (token,) = watched_ids(nano)
    chat, replies, lost, margins, labelled, same_top = [], [], [], [], {}, 0
    for index, ours, theirs in zip(base.conversations, base.scored, forced.scored, strict=True):
        answer = nano.answers[index]
        kl, size = kl_again(ours, theirs), len(answer.ids)
        chat += [kl[:-size]] if len(kl) > size else []
        replies.append(kl[-size:])
        labels = label_tokens(nano.tokenizer, answer.ids, finished=answer.finished)
        for span in Span:
            part = [k for k, of in zip(kl[-size:], labels, strict=True) if of is span]
            labelled.setdefault(span, []).extend([part] if part else [])
        rows = range(len(kl) - size, len(kl))
        picks = [(r, ours.candidates[r].tolist().index(ours.targets[r])) for r in rows]
        lost.append([float(ours.log_probs[at] - theirs.log_probs[at]) for at in picks])
        same_top += sum(int(ours.best[r, 0] == theirs.best[r, 0]) for r in rows)
        if nano.conversations[index].tools:
            row = rows[0]
            at = ours.candidates[row].tolist().index(token)
            both = []
            for s in (ours, theirs):
                other = next(k for k in (0, 1) if s.best[row, k] != token)
                both.append(float(s.log_probs[row, at] - s.best_log_probs[row, other]))
            margins.append((nano.conversations[index].id, *both))
    floors = floors_again(nano)
    own = {part: max(floors[f"{part}_itself"], floors[f"{part}_in_16_bits"])
           for part in ("prompts", "replies")}  # fmt: skip
    numbers = {name: outcome.verdict.numbers for name, outcome in outcomes.items()}
    checked = [("chat_kl", "kl", chat), ("reply_kl", "kl", replies), ("log_prob", "lost", lost)]
    checked += [
        ("reply_kl", f"{span.value}_kl", parts) for span, parts in labelled.items() if parts
    ]
    checked.append(("trigger", "shift", [[b - a] for _, a, b in margins]))
    for check_name, key, prompts in checked:
        mean, low, high = mean_and_rough_interval(prompts)
        stated = numbers[check_name]
        assert stated[key] == pytest.approx(mean, rel=1e-6, abs=1e-12), (check_name, key)
        assert stated[f"{key}_prompts"] == len(prompts)
        assert stated[f"{key}_tokens"] == sum(map(len, prompts))
        if len(prompts) >= 8:
            width = max(high - low, 1e-12)
            ends = (stated[f"{key}_low"], stated[f"{key}_high"])
            assert ends == pytest.approx((low, high), abs=0.35 * width), (check_name, key)
    stated = numbers["noise_floor"]
    for key, value in floors.items():
        assert stated[key] == pytest.approx(value, rel=1e-6, abs=1e-12)
    for part, value in own.items():
        assert stated[f"{part}_floor"] == pytest.approx(value, rel=1e-6)
    once = [base.scored[position] for position in base.again]
    assert base.long_narrow is not None
    of_long = kl_again(base.long, base.long_narrow)
    own_long = sum(of_long) / len(of_long)
    assert stated["long_in_16_bits"] == pytest.approx(own_long, rel=1e-6)
    assert (stated["limit"], stated["prompts"]) == (0.08, 8)
    tokens = [(a.best[r, 0], b.best[r, 0]) for a, b in zip(once, base.narrow, strict=True)
              for r in range(len(a.targets))]  # fmt: skip
    assert stated["tokens"] == len(tokens)
    assert stated["same_top_in_16_bits"] == sum(a == b for a, b in tokens)
    assert numbers["chat_kl"]["noise"] == pytest.approx(own["prompts"], rel=1e-6, abs=1e-12)
    assert numbers["chat_kl"]["limit"] == pytest.approx(0.08 + own["prompts"])
    assert numbers["reply_kl"]["limit"] == pytest.approx(0.08 + own["replies"])
    assert numbers["reply_kl"]["span_limit"] == pytest.approx(0.24 + own["replies"])
    assert numbers["log_prob"]["limit"] == pytest.approx(0.08 + own["replies"])
    assert numbers["long_context"]["limit"] == pytest.approx(0.24 + own_long)
    assert numbers["reply_kl"]["same_top"] == same_top
    assert numbers["log_prob"]["perplexity_ratio"] == pytest.approx(
        math.exp(sum(map(sum, lost)) / sum(map(len, lost)))
    )
    trigger = numbers["trigger"]
    assert trigger["same"] == sum((a > 0) == (b > 0) for _, a, b in margins)
    assert (trigger["with_tools"], trigger["floor"]) == (len(margins), 0.80)
    assert trigger["calls"] == sum(a > 0 for _, a, _ in margins)
    check_turned(trigger, margins)
    for check_name in ("chat_kl", "reply_kl", "log_prob"):
        check_needed(numbers[check_name], "lost" if check_name == "log_prob" else "kl")
    assert trigger["smallest_margin"] == pytest.approx(min(abs(a) for _, a, _ in margins))
    points = [(p.subject, *p.values.values()) for p in outcomes["trigger"].points]
    assert points == [(name, pytest.approx(a), pytest.approx(b)) for name, a, b in margins]
    long = kl_again(base.long, forced.long)
    assert numbers["long_context"]["kl"] == pytest.approx(sum(long) / len(long), rel=1e-6)
    assert numbers["long_context"]["tokens"] == len(long)
