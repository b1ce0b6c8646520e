"""What a run was asked and how often it was right, summed up for the report.

In: the suite, the gate, conversations and answers. Out: the parts of a Report that are counts over
all of them. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence

from convert.errors import InputError
from verify.artifact import Artifact
from verify.evidence import Answer, Reference
from verify.gate import Gate
from verify.report.contents import Detectable, Fit, GateReport, Scores, SuiteReport
from verify.scoring import score
from verify.statistics import count, smallest_detectable_drop
from verify.suite import Suite

FLIP_SHARES = (0.02, 0.05, 0.10)
"""Shares of prompts that flip either way for which a suite states its smallest detectable drop."""


def scores(reference: Reference, answers: tuple[Answer, ...]) -> Scores:
    """Right answers by kind, wherever something is expected."""
    flags: dict[str, list[bool]] = {}
    for conversation, answer in zip(reference.conversations, answers, strict=True):
        if conversation.expected is not None:
            for kind, right in score(conversation.expected, answer).items():
                flags.setdefault(kind, []).append(right)
    return Scores(
        kinds={kind: count(values) for kind, values in flags.items()},
        malformed=count([bool(answer.reply.malformed) for answer in answers]),
        cut_off=count([not answer.finished for answer in answers]),
        unfinished=count([answer.reply.unfinished for answer in answers]),
    )


def suite_report(suite: Suite, reference: Reference) -> SuiteReport:
    """Which conversations are used, and the smallest drops their prompts can show."""
    with_tools = sum(bool(conversation.tools) for conversation in reference.conversations)
    return SuiteReport(
        name=suite.name,
        sha256=suite.sha256,
        used=len(suite.conversations),
        available=suite.available,
        with_tools=with_tools,
        tags=suite.tags,
        detectable=tuple(
            Detectable(share, smallest_detectable_drop(with_tools, share)) for share in FLIP_SHARES
        ),
        later_turns=len(reference.conversations) - len(suite.conversations),
        not_reached=reference.not_reached,
    )


def fit_report(artifact: Artifact) -> Fit | None:
    """What it takes to run an artifact, by the verb `fit`; None for what that cannot read."""
    if artifact.served:
        return None
    from quantize.fit.fit import fit

    try:
        report = fit(str(artifact.path))
    except InputError:
        return None
    (smallest, *_) = report.survey
    gpu = smallest.gpu.name if smallest.gpu else None
    return Fit(report.question.context, smallest.count, gpu)


def gate_report(gate: Gate, artifacts: Sequence[Artifact]) -> GateReport:
    """What was asked of the types at hand."""
    used = {artifact.type: gate.of(artifact.type) for artifact in artifacts}
    return GateReport(
        gate.note,
        {
            name: {
                "class": asked.name,
                "same_calls": asked.same_calls,
                "kl": asked.kl,
                "same_trigger": asked.same_trigger,
                "equality": asked.equality,
                **asked.drops.model_dump(),
            }
            for name, asked in used.items()
        },
    )
