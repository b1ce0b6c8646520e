"""Does the model refuse as it is? It is asked for the first words of its reply to every prompt.

In: the model and the rendered prompts. Out: the prompts, each with whether it was refused, and a
`Baseline` over those without tools: how many of either kind are refused by phrase, and how many of
the refused kind by the first token's score.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from convert.model import Model
from convert.rendering import Tokenizer, stop_ids
from convert.workers import Steps
from quantize.abliteration.machine import Machine
from quantize.abliteration.measurement import Baseline
from quantize.abliteration.prompts import HARMLESS, PLAIN, REFUSED, Prompt, PromptSet
from quantize.abliteration.refusals import looks_like_refusal, refusal_scores

if TYPE_CHECKING:
    from quantize.activations.saved import Progress

REPLY_TOKENS = 12


def ask_baseline(
    model: Model,
    tokenizer: Tokenizer,
    prompts: PromptSet,
    machine: Machine,
    progress: Progress,
    on_progress: Steps | None,
) -> tuple[PromptSet, Baseline]:
    """The first words the model replies to every prompt, and how often they refuse."""
    from quantize.activations.replies import greedy_replies
    from quantize.activations.steering import NOTHING, steered_logits

    folder = model.checkpoint.path
    ids = [p.ids for p in prompts.prompts]
    device, dtype = machine.device, machine.dtype
    stops = stop_ids(model.checkpoint, tokenizer)
    replies = greedy_replies(
        folder,
        ids,
        REPLY_TOKENS,
        stops,
        device=device,
        dtype=dtype,
        progress=progress,
        on_progress=on_progress,
    )
    refuses = [looks_like_refusal(tokenizer.decode(reply)) for reply in replies]
    answered = tuple(replace(p, refuses=r) for p, r in zip(prompts.prompts, refuses, strict=True))
    of = {kind: [i for i, p in enumerate(answered) if _is(p, kind)] for kind in (REFUSED, HARMLESS)}
    first = sorted({replies[i][0] for i in of[REFUSED] if refuses[i]})
    by_score = 0
    if first:
        texts = [ids[i] for i in of[REFUSED]]
        (found,) = steered_logits(folder, [(texts, NOTHING)], device=device, dtype=dtype)
        by_score = int((refusal_scores(found, first) > 0).sum())
    baseline = Baseline(
        refused=sum(refuses[i] for i in of[REFUSED]),
        refused_by_score=by_score,
        prompts=len(of[REFUSED]),
        harmless_refused=sum(refuses[i] for i in of[HARMLESS]),
        harmless_prompts=len(of[HARMLESS]),
        first_tokens=tuple(first),
    )
    return replace(prompts, prompts=answered), baseline


def _is(prompt: Prompt, kind: str) -> bool:
    return prompt.kind == kind and prompt.variant == PLAIN
