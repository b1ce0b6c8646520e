"""Replies as a server served them, judged as other replies are.

In: what a server made of conversations (`ServedReply`): calls by its own parser, the text that was
left, the reasoning it split off. Out: `Answer` values, which the measures of `behaviour.py` can
judge, and those judgements.

A server may constrain what is generated when a request brings tools: llama-server puts a grammar on
everything after `<tool_call>`, vLLM can by structural tags. Damage that shows in free generation
(broken JSON, a function that does not exist) cannot show under a constraint, so what is found here
stands beside what was found on token ids and never in its place; of a server without token ids it
is all there is, and every reason says so.

A call that the server left standing in the text was not made: it is malformed. Such an answer has
no token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from verify.behaviour import check_behaviour
from verify.check import Outcome, Point
from verify.engines import ServedReply
from verify.evidence import Answer, Evidence, Reference
from verify.tool_calls import Reply, parse_reply

NOTE = "as served, perhaps constrained"


def as_answers(reference: Reference, served: Sequence[ServedReply | None]) -> tuple[Answer, ...]:
    """What was served to each conversation; all of them must have been."""
    found = []
    for index, reply in enumerate(served):
        assert reply is not None
        found.append(_answer(reply, reference.opened(index)))
    return tuple(found)


def _answer(served: ServedReply, opened: str) -> Answer:
    begun = not served.reasoning and (f"</{opened}>" in served.text or not served.finished)
    written = parse_reply(served.text, opened if begun else "")  # else the server split it off
    left = ["a call that the server left in the text"] * len(written.blocks)
    reply = Reply(
        calls=served.calls,
        recovered=(),
        text=written.text,
        malformed=(*served.malformed, *left),
        reasoning=served.reasoning or written.reasoning,
        unfinished=written.unfinished,
        answer_start=written.answer_start,
    )
    return Answer((), "\n".join([served.text, *map(str, served.calls)]), reply, served.finished)


def judged_as_served(evidence: Evidence) -> list[Outcome]:
    """Every measure of behaviour, where `evidence.answers` are served replies."""
    return [
        replace(outcome, verdict=replace(verdict, reason=f"{verdict.reason}; {NOTE}"))
        for outcome in check_behaviour(evidence)
        for verdict in (outcome.verdict,)
    ]


def beside(evidence: Evidence, served: Sequence[ServedReply | None]) -> tuple[Point, ...]:
    """Right replies by measure: the reference's, and the artifact's as generated and as served.

    Over the conversations that were served; none if nothing was generated on token ids.
    """
    if evidence.answers is None:
        return ()
    places = [place for place, reply in enumerate(served) if reply is not None]
    base = evidence.reference
    part = replace(
        base,
        conversations=tuple(base.conversations[i] for i in places),
        prompts=tuple(base.prompts[i] for i in places),
        answers=tuple(base.answers[i] for i in places),
    )
    generated = tuple(evidence.answers[i] for i in places)
    answers = as_answers(part, [served[i] for i in places])
    first = check_behaviour(replace(evidence, reference=part, answers=generated))
    second = check_behaviour(replace(evidence, reference=part, answers=answers))
    return tuple(
        Point(
            free.check,
            {
                "prompts": _count(free, "prompts"),
                "reference": _count(free, "reference_right"),
                "as generated": _count(free, "artifact_right"),
                "as served": _count(bound, "artifact_right"),
            },
        )
        for free, bound in zip(first, second, strict=True)
    )


def _count(outcome: Outcome, key: str) -> int:
    found = outcome.verdict.numbers[key]
    assert isinstance(found, int)
    return found
