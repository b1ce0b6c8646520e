"""Which text is scored, and scoring it: the reference's own answers, some prompts, one long text.

In: a `Reference` with its answers, and an engine. Out: `TeacherForced`.

Every model is given the same tokens and asked what it would have thought of each, so a difference
at one token is a difference of weights there and not the echo of an earlier one. Three texts:

    replies   the reference's answers to at most REPLIES conversations, spread evenly
    chat      of PROMPTS of those, the prompt's own tokens too: system text, tools, question. A
              reply is nearly certain, a prompt is not, so this is where small damage shows, and
              the figure that compares with published ones, which are of running text
    long      prompts and answers one after the other, until they reach a quarter beyond
              original_max_position_embeddings (or LONG tokens in a model without rope scaling);
              its last LONG_SCORED tokens are scored

Of an engine that pays for a token scored as for one generated (BY_STEPS), only the last PROMPT_END
tokens of those prompts are asked: the end of the question, and the turn of the assistant. Where the
reference is such an engine, nobody is asked more. The long text may be too long for an engine's
memory; the others stand without it.

AGAIN of the conversations whose prompts are scored, spread evenly too, are scored twice more, and
answered twice more, for the noise floor: each in a batch of its own, and in 16 bits, as the
checkpoint itself is served; the long text in 16 bits. All of them have a prompt and a reply, so
that each of the two has a floor of its own.

Wrong rope frequencies or a wrong base leave short text nearly alone; the long one shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle

from convert.errors import ContextError, ServerError, UnsupportedError
from convert.rendering import stop_ids
from verify.engines import (
    BY_STEPS,
    LOG_PROBABILITIES,
    NARROWS,
    Engine,
    NarrowingEngine,
    OnProgress,
    ScoringEngine,
)
from verify.engines.log_probabilities import Passage, Scored
from verify.evidence import Reference, TeacherForced
from verify.suite import spread
from verify.tool_calls import OPEN

TOP = 64
REPLIES = 80
PROMPTS = 24
AGAIN = 8
LONG = 2048
LONG_SCORED = 256
PROMPT_END = 64
NOT_HAD = (ServerError, UnsupportedError, ContextError)
"""What says that log-probabilities cannot be had, and nothing against the model."""


def score_reference(
    engine: ScoringEngine,
    reference: Reference,
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
) -> TeacherForced:
    """The reference along its own text; it picks the candidates, and may end up in 16 bits."""
    chosen = choose_conversations(reference)
    passages = [make_passage(reference, index, chosen) for index in chosen]
    passages = _as_long_as_asked(engine, reference, chosen, passages)
    always = watched_ids(reference)
    scored = engine.score(passages, top=TOP, always=always, on_progress=on_progress)
    positions = choose_again(len(chosen))
    again = [_with_candidates(passages[i], scored[i]) for i in positions]
    prompts = [reference.prompts[chosen[i]] for i in positions]
    stops = stop_ids(reference.checkpoint, reference.tokenizer)
    answer = partial(engine.generate, max_new_tokens=max_new_tokens, stop_ids=stops)
    long, no_long = _score_long(engine, long_passage(reference), scored)
    found = TeacherForced(
        conversations=chosen,
        scored=tuple(scored),
        long=long,
        again=positions,
        alone=tuple(engine.score([passage], top=TOP)[0] for passage in again),
        no_long=no_long,
        answered_alone=tuple(tuple(answer([prompt])[0]) for prompt in prompts),
    )
    if NARROWS not in engine.info.capabilities:
        return found
    assert isinstance(engine, NarrowingEngine)
    engine.narrow()
    once_more = [] if no_long else [_with_candidates(long_passage(reference), long)]
    return replace(
        found,
        narrow=tuple(engine.score(again, top=TOP)),
        long_narrow=next(iter(engine.score(once_more, top=TOP)), None),
        answered_narrow=tuple(map(tuple, answer(prompts))),
    )


def score_artifact(
    engine: Engine, reference: Reference, on_progress: OnProgress | None = None
) -> TeacherForced | str:
    """An artifact along the same text, on the same candidates; or why that cannot be had."""
    base = reference.forced
    assert base is not None
    capable = LOG_PROBABILITIES in engine.info.capabilities
    if not capable or not isinstance(engine, ScoringEngine):
        return f"{engine.info.name} gives no log-probabilities of a text it is given"
    passages = [
        _with_candidates(make_passage(reference, index, base.conversations), found)
        for index, found in zip(base.conversations, base.scored, strict=True)
    ]
    passages = _as_long_as_asked(engine, reference, base.conversations, passages)
    try:
        scored = engine.score(passages, top=TOP, on_progress=on_progress)
    except NOT_HAD as error:
        return str(error)
    if base.no_long:
        long, no_long = base.long, f"not had of the reference: {base.no_long}"
    else:
        asked = _with_candidates(long_passage(reference), base.long)
        long, no_long = _score_long(engine, asked, scored)
    return TeacherForced(base.conversations, tuple(scored), long, no_long=no_long)


def _as_long_as_asked(
    engine: ScoringEngine, reference: Reference, chosen: Sequence[int], passages: list[Passage]
) -> list[Passage]:
    """The passages of these conversations, or what is asked of them where every step costs."""
    if BY_STEPS not in engine.info.capabilities:
        return passages
    return [
        _end_of(passage, len(reference.answers[index].ids) + PROMPT_END)
        for index, passage in zip(chosen, passages, strict=True)
    ]


def _score_long(
    engine: ScoringEngine, passage: Passage, others: Sequence[Scored]
) -> tuple[Scored, str]:
    """Along the long text, or no token (in the form that `others` have) and why."""
    try:
        return engine.score([passage], top=TOP)[0], ""
    except NOT_HAD as error:
        return others[0].part(slice(0, 0)), str(error)


def choose_conversations(reference: Reference) -> tuple[int, ...]:
    """Indices of the conversations that are scored: those with an answer, evenly spread."""
    answered = [i for i, answer in enumerate(reference.answers) if answer.ids]
    return tuple(answered[i] for i in spread(len(answered), REPLIES))


def make_passage(reference: Reference, index: int, chosen: tuple[int, ...]) -> Passage:
    """A prompt and its answer; scored from the answer on, or whole for PROMPTS of them."""
    prompt = tuple(reference.prompts[index])
    whole = index in {chosen[i] for i in _whole(len(chosen))}
    return Passage((*prompt, *reference.answers[index].ids), 1 if whole else len(prompt))


def _whole(chosen: int) -> list[int]:
    """Positions of those that are scored from their prompts on."""
    return spread(chosen, PROMPTS)


def choose_again(chosen: int) -> tuple[int, ...]:
    """Positions of those that are scored and answered again, all of them whole."""
    whole = _whole(chosen)
    return tuple(whole[place] for place in spread(len(whole), AGAIN))


def long_passage(reference: Reference) -> Passage:
    """Prompts and answers one after the other, as long as the rope has to be stretched for."""
    spec = reference.checkpoint.spec
    wanted = LONG
    if spec.rope_scaling is not None:
        original = spec.rope_scaling.original_max_position_embeddings
        wanted = original + max(original // 4, LONG_SCORED)
    wanted = min(wanted, spec.max_position_embeddings)
    ids: list[int] = []
    for prompt, answer in cycle(zip(reference.prompts, reference.answers, strict=True)):
        ids += [*prompt, *answer.ids]
        if len(ids) >= wanted:
            return Passage(tuple(ids[:wanted]), max(1, wanted - LONG_SCORED))
    raise AssertionError("a reference without prompts")


def watched_ids(reference: Reference) -> tuple[int, ...]:
    """The token whose log-probability is kept everywhere: the one that opens a tool call.

    Where the tag is several tokens it is the first of them, which other replies may begin with too.
    """
    token = reference.tokenizer.token_id(OPEN)
    return tuple(reference.tokenizer.encode(OPEN)[:1]) if token is None else (token,)


def _end_of(passage: Passage, rows: int) -> Passage:
    """The passage scored over its last `rows` tokens only, if it has more."""
    start = max(passage.start, len(passage.ids) - rows)
    picked = passage.candidates
    return Passage(passage.ids, start, None if picked is None else picked[start - passage.start :])


def _with_candidates(passage: Passage, found: Scored) -> Passage:
    """The passage over what was scored of it, with the same candidates."""
    start = len(passage.ids) - len(found.targets)
    return replace(passage, start=start, candidates=found.candidates)
