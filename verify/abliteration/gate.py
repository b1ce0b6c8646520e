"""The verb `abliterate verify`: pairs of artifacts, one unedited and one edited of the same type.

In: the unedited 16-bit checkpoint, the EDIT, pairs of artifacts, prompts that were refused (with
their right answers) and harmless ones, perhaps a suite for the tool checks and control artifacts.
Out: a `GateReport`. One model is in memory at a time. Tool calls, JSON mode and wrong refusals are
the checks of `verify` itself, with the unedited artifact in the reference's place; prompts of the
suite that must be refused are left out, since refusing them is what was taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation, read_conversations
from convert.errors import InputError, UnsupportedError
from convert.hub import locate
from convert.job import tool_version
from convert.rendering import Tokenizer
from convert.workers import Steps
from quantize.abliteration.edit_folder import EditFolder, read_edit
from quantize.abliteration.refusals import looks_like_refusal
from verify.abliteration.replies import (
    DRIFT_TOKENS,
    REPLY_TOKENS,
    Limits,
    Said,
    check_control,
    check_replies,
    first_token_scores,
)
from verify.abliteration.weights import check_residue, check_untouched
from verify.artifact import Artifact, Kind, open_artifact
from verify.behaviour import check_behaviour
from verify.check import EXIT_CODES, Outcome, State, total_state
from verify.engines import LOG_PROBABILITIES, Engine, ScoringEngine
from verify.engines.log_probabilities import Passage, Scored
from verify.engines.opening import open_engine
from verify.evidence import Answer, Evidence, Reference, ask, make_prompts
from verify.gate import Gate, read_gate
from verify.suite import read_suite

SCHEMA_VERSION = 1
TOP = 64
SUITE_TOKENS = 256
Open = Callable[[Artifact], Engine]
Pair = tuple[Path, Path]


@dataclass(frozen=True, slots=True)
class PairReport:
    """One edited artifact beside the unedited one, and the refusal scores that a plot shows."""

    unedited: str
    edited: str
    type: str
    state: State
    outcomes: tuple[Outcome, ...]
    scores: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class GateReport:
    """Everything one run saw."""

    tool: str
    edit: dict[str, Any]
    limits: Limits
    pairs: tuple[PairReport, ...]
    controls: tuple[Outcome, ...]

    @property
    def state(self) -> State:
        """All pairs and controls together."""
        states = [pair.state for pair in self.pairs]
        return total_state([*states, *(c.verdict.state for c in self.controls)])

    @property
    def exit_code(self) -> int:
        """As `verify` has it."""
        return EXIT_CODES[self.state]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema_version": SCHEMA_VERSION, "state": self.state.value, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Asked:
    """The prompts of one run; each Reference holds conversations and ids, and no answers."""

    refused: Reference
    harmless: Reference
    suite: Reference | None


def verify_abliteration(
    model: str,
    edit: Path,
    pairs: Sequence[Pair],
    refused: Path,
    harmless: Path,
    *,
    suite: Path | None = None,
    limit: int | None = None,
    gate: Path | None = None,
    max_new_tokens: int = SUITE_TOKENS,
    controls: Sequence[Path] = (),
    limits: Limits | None = None,
    on_progress: Steps | None = None,
    open_engine: Open = open_engine,
) -> GateReport:
    """Compare every pair; raises InputError for what cannot be begun with.

    `gate` holds the margins of the suite's checks and `max_new_tokens` is for the suite's replies,
    both as `verify` has them.
    """
    if not pairs:
        raise InputError("no pair to compare; give --pair UNEDITED EDITED")
    asked_of = limits or Limits()
    given = read_edit(edit)
    opened = [(open_artifact(one), open_artifact(other)) for one, other in pairs]
    for one, other in opened:
        if one.type != other.type:
            raise InputError(
                f"{one.name} is {one.type} and {other.name} is {other.type}; a pair is of one type"
            )
    with Checkpoint.open(locate(model).folder) as base:
        tokenizer = Tokenizer.open(base.path)
        asked = _asked(base, tokenizer, refused, harmless, suite, limit, max_new_tokens)
        margins = read_gate(gate, base.path)
        tokens = max_new_tokens
        run = _Run(base, given, asked, margins, asked_of, on_progress, open_engine, tokens)
        reports = tuple(run.pair(one, other) for one, other in opened)
        outcomes = tuple(run.control(open_artifact(path)) for path in controls)
        tokenizer.close()
    return GateReport(tool_version(), given.record(), asked_of, reports, outcomes)


def read_pairs(texts: Sequence[str]) -> list[Pair]:
    """`UNEDITED,EDITED`, as the command line has it."""
    found = []
    for text in texts:
        one, comma, other = text.partition(",")
        if not (one and comma and other) or "," in other:
            raise InputError(f"--pair {text!r}: expected UNEDITED,EDITED")
        found.append((Path(one), Path(other)))
    return found


def _asked(
    base: Checkpoint,
    tokenizer: Tokenizer,
    refused: Path,
    harmless: Path,
    suite: Path | None,
    limit: int | None,
    max_new_tokens: int,
) -> _Asked:
    def reference(conversations: Sequence[Conversation], tokens: int) -> Reference:
        prompts = make_prompts(base, tokenizer, conversations, tokens)
        return Reference(base, tokenizer, tuple(conversations), prompts)

    chosen = None
    if suite is not None:
        read = read_suite(suite, base.path, limit).conversations
        kept = [c for c in read if c.expected is None or not c.expected.refusal]
        chosen = reference(kept, max_new_tokens)
    return _Asked(
        reference(read_conversations(refused), REPLY_TOKENS),
        reference(read_conversations(harmless), REPLY_TOKENS),
        chosen,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What the pairs of one run share."""

    base: Checkpoint
    edit: EditFolder
    asked: _Asked
    gate: Gate
    limits: Limits
    on_progress: Steps | None
    open_engine: Open
    suite_tokens: int

    def pair(self, unedited: Artifact, edited: Artifact) -> PairReport:
        """All checks of one pair."""
        outcomes = [
            check_residue(self.base, edited, self.edit),
            check_untouched(self.base, unedited, edited, self.edit),
        ]
        before, calls_before = self._said(unedited, None)
        after, calls_after = self._said(edited, before)
        outcomes += check_replies(
            self.asked.refused.conversations,
            self.asked.harmless.conversations,
            before,
            after,
            self.limits,
        )
        if self.asked.suite is not None:
            reference = replace(self.asked.suite, answers=calls_before)
            thresholds = self.gate.of(edited.type)
            evidence = Evidence(reference, edited, thresholds, answers=calls_after)
            outcomes += check_behaviour(evidence)
        scores = {
            "refused before": before.scores.tolist(),
            "refused after": after.scores.tolist(),
            "harmless before": before.harmless_scores.tolist(),
            "harmless after": after.harmless_scores.tolist(),
        }
        state = total_state(outcome.verdict.state for outcome in outcomes)
        return PairReport(unedited.name, edited.name, edited.type, state, tuple(outcomes), scores)

    def control(self, artifact: Artifact) -> Outcome:
        """How often an artifact with a random edit refuses."""
        engine = self._open(artifact)
        try:
            answers = self._ask(engine, artifact, self.asked.refused, REPLY_TOKENS)
        finally:
            engine.close()
        return check_control(artifact.name, answers, self.limits)

    def _said(self, artifact: Artifact, before: Said | None) -> tuple[Said, tuple[Answer, ...]]:
        """Everything one model is asked; along the unedited model's replies where it is edited."""
        engine = self._open(artifact)
        try:
            refused = self._ask(engine, artifact, self.asked.refused, REPLY_TOKENS)
            harmless = self._ask(engine, artifact, self.asked.harmless, REPLY_TOKENS)
            first = self._first_tokens(before.refused if before else refused)
            replies = before.harmless if before else harmless
            along = _passages(self.asked.harmless, replies, DRIFT_TOKENS, before)
            scored = tuple(engine.score(along, top=TOP, always=first))
            prompts = (*self.asked.refused.prompts, *self.asked.harmless.prompts)
            # Which token follows the prompt does not matter: the row before it is looked at.
            opening = [Passage((*prompt, prompt[-1]), len(prompt)) for prompt in prompts]
            rows = engine.score(opening, top=TOP, always=first)
            calls: tuple[Answer, ...] = ()
            if self.asked.suite is not None:
                calls = self._ask(engine, artifact, self.asked.suite, self.suite_tokens)
        finally:
            engine.close()
        count = len(self.asked.refused.prompts)
        scores = first_token_scores(rows, first)
        return Said(refused, harmless, scored, scores[:count], scores[count:]), calls

    def _first_tokens(self, answers: Sequence[Answer]) -> tuple[int, ...]:
        """Tokens that the unedited model's refusals begin with."""
        return tuple(sorted({a.ids[0] for a in answers if a.ids and _refuses(a)}))

    def _open(self, artifact: Artifact) -> Any:
        if artifact.kind is Kind.SERVER:
            raise UnsupportedError(f"{artifact.name}: a served model cannot be part of a pair")
        engine = self.open_engine(artifact)
        if LOG_PROBABILITIES not in engine.info.capabilities or not isinstance(
            engine, ScoringEngine
        ):
            engine.close()
            raise UnsupportedError(f"{artifact.name}: its engine gives no log-probabilities")
        return engine

    def _ask(
        self, engine: Engine, artifact: Artifact, asked: Reference, tokens: int
    ) -> tuple[Answer, ...]:
        report = self.on_progress
        named = (lambda done, total: report(artifact.name, done, total)) if report else None
        return ask(engine, asked, max_new_tokens=tokens, on_progress=named)


def _refuses(answer: Answer) -> bool:
    return looks_like_refusal(answer.reply.text)


def _passages(
    asked: Reference, replies: Sequence[Answer], tokens: int, before: Said | None
) -> list[Passage]:
    """Each prompt and the first tokens of the unedited model's reply, on its candidates."""
    found = []
    known: Sequence[Scored | None] = before.scored if before else [None] * len(replies)
    pairs = [(p, a) for p, a in zip(asked.prompts, replies, strict=True) if a.ids]
    for (prompt, answer), scored in zip(pairs, known, strict=False):
        ids = (*prompt, *answer.ids[:tokens])
        candidates = None if scored is None else np.asarray(scored.candidates)
        found.append(Passage(ids, len(prompt), candidates))
    return found
