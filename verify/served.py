"""Served calls: does the server's own tool parser find the calls its model's reference makes?

In: the reference's answers, and for each conversation with tools the reply of a server that was
given the conversation itself, not token ids: it rendered the prompt with its template and parsed
the reply with its parser (`--tool-call-parser hermes` in vLLM). Out: an Outcome; the floor, and how
equal calls must be, are those for agreement.

The server may constrain what it generates when tools are on offer (llama-server does, by a grammar
from the opening tag on; vLLM can): damage that a constraint hides is not seen here. The points
therefore count right replies by every measure twice, on token ids and as served
(`served_replies.py`); nothing is decided by them.

This is what an application sees, and it can be wrong where the weights are right: a template that
was replaced on the command line, a parser for another format. Whether both prompts are equally long
is therefore counted too; where they are not, the template is the first thing to look at.

A reference reply that is itself malformed says nothing about a parser and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from verify.check import Finding, Outcome, State, Verdict
from verify.engines import ServedReply
from verify.equality import tier_of_calls, within
from verify.evidence import Answer, Evidence
from verify.served_replies import NOTE, beside
from verify.statistics import count, say_needed

NAME = "served_calls"
FINDINGS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class _Pair:
    """One conversation with tools: how long its prompt is, and what both sides made of it."""

    subject: str
    prompt_tokens: int
    ours: Answer
    theirs: ServedReply
    same_calls: bool

    @property
    def same_prompt(self) -> bool:
        return self.theirs.prompt_tokens in (None, self.prompt_tokens)


def check_served_calls(evidence: Evidence, /) -> Outcome:
    """Compare the calls a server found with those of the reference's replies."""
    every = list(_pairs(evidence))
    pairs = [pair for pair in every if not pair.ours.reply.malformed]
    calls = count([pair.same_calls for pair in pairs])
    prompts = count([pair.same_prompt for pair in every])
    low, high = calls.interval
    floor = evidence.thresholds.same_calls
    reason = (
        f"the server's parser found the same calls in {calls.hits} of {calls.total},"
        f" 95 % interval {low:.3f} to {high:.3f}; floor {floor:.2f}; {NOTE}"
    )
    state = calls.decide(floor)
    if state is State.NOT_ENOUGH_EVIDENCE:
        reason += f": {say_needed(calls.needed(floor), calls.total)}"
    if prompts.hits < prompts.total:
        reason += f"; {prompts.total - prompts.hits} of its prompts are not the reference's"
    numbers = {
        "same_calls": calls.hits,
        "compared": calls.total,
        "same_calls_rate": calls.value,
        "same_calls_low": low,
        "same_calls_high": high,
        "floor": floor,
        "prompts_needed": calls.needed(floor),
        "equality": evidence.thresholds.tier.value,
        "left_out": len(every) - len(pairs),
        "same_prompt_tokens": prompts.hits,
        "with_tools": prompts.total,
    }
    findings = [*_prompt_findings(every), *_call_findings(pairs)]
    verdict = Verdict(state, reason, numbers)
    points = beside(evidence, evidence.served or ())
    return Outcome(NAME, verdict, tuple(findings[:FINDINGS_SHOWN]), points)


def _pairs(evidence: Evidence) -> Iterator[_Pair]:
    assert evidence.served is not None
    reference = evidence.reference
    for conversation, prompt, ours, theirs in zip(
        reference.conversations, reference.prompts, reference.answers, evidence.served, strict=True
    ):
        if theirs is not None and conversation.tools:
            tier = tier_of_calls(ours.reply.calls, theirs.calls, conversation.tools)
            same = within(tier, evidence.thresholds.tier) and not theirs.malformed
            yield _Pair(conversation.id, len(prompt), ours, theirs, same)


def _prompt_findings(pairs: list[_Pair]) -> Iterator[Finding]:
    """The first prompt that differs is enough: a template differs everywhere."""
    for pair in pairs:
        if not pair.same_prompt:
            yield Finding(
                pair.subject,
                f"the server rendered {pair.theirs.prompt_tokens} tokens, the reference"
                f" {pair.prompt_tokens}: another template or tokenizer",
            )
            return


def _call_findings(pairs: list[_Pair]) -> Iterator[Finding]:
    for pair in pairs:
        if not pair.same_calls:
            found = [*map(str, pair.theirs.calls), *pair.theirs.malformed]
            made = list(map(str, pair.ours.reply.calls))
            yield Finding(pair.subject, f"reference {made!r:.300}, server {found!r:.300}")
