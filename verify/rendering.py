"""Rendering: do an artifact's own templates and vocabulary make the reference's prompts?

In: the reference's prompts and the artifact. Out: an outcome. Engines are prompted with ids, so
nothing else in `verify` sees a template at work; this check does what a server does with the
artifact alone (`own_prompts.py`) and compares ids. It sees what text cannot show: the wrong choice
of two templates, a BOS or EOS of another text, a BOS twice or not at all, an EOS after the prompt.

One difference is the reference's own and is only told: a template that writes no BOS under a
tokenizer.json that adds one gets none from vLLM and transformers, and one from llama.cpp.

At most RENDERED prompts are rendered, evenly spread over the suite, and the reason says how many.
Templates that were stopped for what they use are not asked again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convert.errors import InputError
from convert.tokenizer import read_vocabulary
from verify.check import Finding, Outcome, State, Verdict
from verify.engines import Ids
from verify.evidence import Evidence, Reference
from verify.own_prompts import OwnPrompts, open_prompts
from verify.prefix_stability import measure_stability, stability_numbers
from verify.suite import spread
from verify.tokens import first_difference

NAME = "rendering"
RENDERED = 100
ERRORS_ENOUGH = 3
FINDINGS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class _Compared:
    """How many prompts were rendered; what differs, and what is only worth knowing."""

    rendered: int
    different: tuple[Finding, ...]
    added_bos: tuple[Finding, ...]


def check_rendering(evidence: Evidence, /) -> Outcome:
    """Render with the artifact's own files and compare with the reference's prompts."""
    reference = evidence.reference
    if not reference.prompts:
        return Outcome(NAME, Verdict(State.NOT_ENOUGH_EVIDENCE, "the suite has no prompt"))
    chosen = spread(len(reference.prompts), RENDERED)
    try:
        own = open_prompts(evidence.artifact)
    except InputError as error:
        verdict = Verdict(State.FAIL, "its templates or tokenizer cannot be read")
        return Outcome(NAME, verdict, (Finding(evidence.artifact.name, str(error)),))
    try:
        found = _compare(own, reference, chosen)
    finally:
        own.close()
    stability = measure_stability(reference, chosen)
    numbers = {
        "prompts": len(reference.prompts),
        "rendered": found.rendered,
        "different": len(found.different),
        "bos_added": len(found.added_bos),
        **stability_numbers(stability),
    }
    notes = (*found.added_bos[:1], *([stability.example] if stability.example else []))
    of = f"{found.rendered} of {len(reference.prompts)} prompts"
    if found.different:
        reason = f"{len(found.different)} of {found.rendered} prompts are not the reference's"
        findings = (*found.different[:FINDINGS_SHOWN], *notes)
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), findings)
    return Outcome(NAME, Verdict(State.PASS, f"same ids for {of}", numbers), notes)


def _compare(own: OwnPrompts, reference: Reference, chosen: Sequence[int]) -> _Compared:
    different: list[Finding] = []
    added: list[Finding] = []
    rendered = errors = 0
    for i in chosen:
        conversation, expected = reference.conversations[i], reference.prompts[i]
        rendered += 1
        try:
            found = own.ids(conversation)
        except InputError as error:
            different.append(Finding(conversation.id, str(error)))
            errors += 1
            if errors == ERRORS_ENOUGH:
                break
            continue
        bos = reference.tokenizer.bos_id
        if found == list(expected):
            continue
        if bos is not None and expected[0] != bos and found == [bos, *expected]:
            added.append(Finding(conversation.id, _BOS_ADDED))
        else:
            different.append(Finding(conversation.id, _said(bos, expected, found)))
    if added and not _adds_bos(reference):
        different, added = [*different, *added], []
    return _Compared(rendered, tuple(different), tuple(added))


_BOS_ADDED = (
    "llama.cpp puts a BOS before the prompt, which its template does not write; vLLM and"
    " transformers send none"
)


def _adds_bos(reference: Reference) -> bool:
    """Whether the reference's own tokenizer puts a BOS before a text."""
    try:
        vocabulary = read_vocabulary(reference.folder, reference.checkpoint.spec)
    except InputError:
        return False
    return vocabulary.add_special.get("bos", False)


def _said(bos: int | None, expected: Ids, found: Sequence[int]) -> str:
    """What is wrong with a prompt: its BOS, or the place where it leaves the reference's."""
    if bos is not None and list(found[:2]) == [bos, bos]:
        return f"begins with two BOS tokens ({bos})"
    if bos is not None and expected[0] == bos and bos not in found[:1]:
        return f"begins without a BOS token ({bos})"
    return first_difference(expected, found)
