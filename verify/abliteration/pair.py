"""One pair of artifacts of a type: files compared, both models asked, their replies compared.

In: an unedited artifact and an edited one. Out: a `PairReport`. Tool calls, JSON mode and wrong
refusals are the checks of `verify` itself, with the unedited artifact in the reference's place. An
edited artifact that cannot be opened, or that its engine cannot load, has failed; nothing is then
known of its replies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.errors import CheckpointError, InputError, UnsupportedError
from convert.workers import Steps
from quantize.abliteration.edit_folder import EditFolder
from quantize.abliteration.refusals import looks_like_refusal
from verify.abliteration.contents import PairReport
from verify.abliteration.replies import Limits, check_control, check_replies
from verify.abliteration.residue import check_residue
from verify.abliteration.said import DRIFT_TOKENS, REPLY_TOKENS, Said, first_token_scores
from verify.abliteration.stored import open_tensors
from verify.abliteration.untouched import check_untouched
from verify.artifact import Artifact, Kind
from verify.behaviour import check_behaviour
from verify.call_outcomes import confusion
from verify.check import Outcome, State, Verdict, finite, total_state
from verify.differences import Difference, differences
from verify.engines import LOG_PROBABILITIES, Engine, EngineInfo, ScoringEngine
from verify.engines.log_probabilities import Passage, Scored
from verify.evidence import Answer, Evidence, Reference, ask
from verify.gate import Gate
from verify.pair_outcomes import count_pairs
from verify.report.contents import ArtifactReport
from verify.run_artifact import named

TOP = 64
SUITE_TOKENS = 256
Open = Callable[[Artifact], Engine]
Answers = tuple[Answer, ...]
_Both = list[tuple[Answer, Answer]]


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts of one run; each Reference holds conversations and ids, and no answers."""

    refused: Reference
    harmless: Reference
    suite: Reference | None
    suite_sha256: str


@dataclass(frozen=True, slots=True)
class _Heard:
    """What one model said to all of it."""

    said: Said
    calls: Answers
    engine: EngineInfo


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """What the pairs of one run share, and the run of each."""

    base: Checkpoint
    edit: EditFolder
    asked: Asked
    gate: Gate
    limits: Limits
    on_progress: Steps | None
    open_engine: Open
    suite_tokens: int = SUITE_TOKENS

    def pair(self, unedited: Artifact, edited: Artifact) -> PairReport:
        """All checks of one pair."""
        begin = time.monotonic()
        try:
            with open_tensors(edited, self.base):
                pass
        except CheckpointError as error:
            outcome = Outcome("structure", Verdict(State.FAIL, _without_path(edited, error)))
            return PairReport(unedited.name, self._described(edited, [outcome], begin), {}, {})
        outcomes = [
            check_residue(self.base, unedited, edited, self.edit),
            check_untouched(self.base, unedited, edited, self.edit),
        ]
        before = self._listen(unedited, None)
        try:
            after: _Heard | None = self._listen(edited, before.said)
        except UnsupportedError:
            raise
        except InputError as error:
            after = None
            outcomes.append(Outcome("run", Verdict(State.FAIL, _without_path(edited, error))))
        report = self._described(edited, outcomes, begin)
        if after is None:
            return PairReport(unedited.name, report, {}, {})
        outcomes += self._compared(edited, before, after)
        both = self._suite(before, after)
        report = replace(
            self._described(edited, outcomes, begin),
            engine=after.engine,
            confusion=confusion(*both),
            pairs=count_pairs(*both, self.gate.of(edited.type).tier),
        )
        scores = {
            "refused before": before.said.scores,
            "refused after": after.said.scores,
            "harmless before": before.said.harmless_scores,
            "harmless after": after.said.harmless_scores,
        }
        shown = {name: tuple(map(finite, found.tolist())) for name, found in scores.items()}
        return PairReport(unedited.name, report, shown, self._differences(before, after))

    def control(self, artifact: Artifact) -> ArtifactReport:
        """How often an artifact with a random edit refuses."""
        begin = time.monotonic()
        engine = self._open(artifact)
        try:
            answers = self._ask(engine, artifact, self.asked.refused, REPLY_TOKENS)
            info = engine.info
        finally:
            engine.close()
        outcome = check_control(artifact.name, answers, self.limits)
        return replace(self._described(artifact, [outcome], begin), engine=info)

    def _described(
        self, artifact: Artifact, outcomes: Sequence[Outcome], begin: float
    ) -> ArtifactReport:
        return ArtifactReport(
            name=artifact.name,
            kind=artifact.kind.value,
            type=artifact.type,
            size_bytes=artifact.size_bytes,
            gate_class=self.gate.of(artifact.type).name,
            state=total_state(outcome.verdict.state for outcome in outcomes),
            outcomes=tuple(outcomes),
            engine=None,
            scores=None,
            seconds=time.monotonic() - begin,
        )

    def _compared(self, edited: Artifact, before: _Heard, after: _Heard) -> Iterable[Outcome]:
        """The checks on replies, and those of `verify` on the suite."""
        yield from check_replies(
            self.asked.refused.conversations,
            self.asked.harmless.conversations,
            before.said,
            after.said,
            self.limits,
        )
        if self.asked.suite is not None:
            reference = replace(self.asked.suite, answers=before.calls)
            thresholds = self.gate.of(edited.type)
            yield from check_behaviour(Evidence(reference, edited, thresholds, answers=after.calls))

    def _suite(self, before: _Heard, after: _Heard) -> tuple[tuple[Conversation, ...], _Both]:
        """Its conversations and what both said to each; nothing without a suite."""
        if self.asked.suite is None:
            return (), []
        return self.asked.suite.conversations, list(zip(before.calls, after.calls, strict=True))

    def _differences(self, before: _Heard, after: _Heard) -> dict[str, tuple[Difference, ...]]:
        """By kind of prompt; that refused ones differ is what was asked for."""
        kinds: list[tuple[str, Reference | None, Answers, Answers]] = [
            ("harmless", self.asked.harmless, before.said.harmless, after.said.harmless),
            ("suite", self.asked.suite, before.calls, after.calls),
            ("refused", self.asked.refused, before.said.refused, after.said.refused),
        ]
        return {
            kind: tuple(differences(asked.conversations, list(zip(ours, theirs, strict=True))))
            for kind, asked, ours, theirs in kinds
            if asked is not None
        }

    def _listen(self, artifact: Artifact, before: Said | None) -> _Heard:
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
            calls: Answers = ()
            if self.asked.suite is not None:
                calls = self._ask(engine, artifact, self.asked.suite, self.suite_tokens)
        finally:
            engine.close()
        count = len(self.asked.refused.prompts)
        scores = first_token_scores(rows, first)
        said = Said(refused, harmless, scored, scores[:count], scores[count:])
        return _Heard(said, calls, engine.info)

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
        report = named(self.on_progress, artifact)
        return ask(engine, asked, max_new_tokens=tokens, on_progress=report)


def _without_path(artifact: Artifact, error: InputError) -> str:
    """A report names files by their own names."""
    return str(error).replace(f"{artifact.path.parent}/", "")


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
