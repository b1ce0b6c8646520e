"""The verb `abliterate verify`: pairs of artifacts, one unedited and one edited of the same type.

In: the unedited 16-bit checkpoint, the EDIT, pairs of artifacts, prompts that were refused (with
their right answers) and harmless ones, perhaps a suite for the tool checks and control artifacts.
Out: a `GateReport`. One model is in memory at a time; `pair.py` runs them. Prompts of the suite
that must be refused are left out, since refusing them is what was taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation, read_conversations
from convert.errors import InputError
from convert.hub import locate
from convert.job import tool_version
from convert.rendering import Tokenizer
from convert.staging import hash_file
from convert.workers import Steps
from quantize.abliteration.edit_folder import read_edit
from verify.abliteration.contents import GateReport
from verify.abliteration.pair import SUITE_TOKENS, Asked, Gatekeeper, Open
from verify.abliteration.replies import Limits
from verify.abliteration.said import REPLY_TOKENS
from verify.artifact import open_artifact
from verify.engines.opening import open_engine
from verify.evidence import Reference, make_prompts
from verify.gate import read_gate
from verify.suite import read_suite, spread

Pair = tuple[Path, Path]


def verify_abliteration(
    model: str,
    edit: Path,
    pairs: Sequence[Pair],
    refused: Path,
    harmless: Path,
    *,
    suite: Path | None = None,
    limit: int | None = None,
    prompts: int | None = None,
    gate: Path | None = None,
    max_new_tokens: int = SUITE_TOKENS,
    controls: Sequence[Path] = (),
    limits: Limits | None = None,
    on_progress: Steps | None = None,
    open_engine: Open = open_engine,
) -> GateReport:
    """Compare every pair; raises InputError for what cannot be begun with.

    `prompts` takes so many of `refused` and of `harmless`, at equal distances, as `limit` does of
    the suite. `gate` holds the margins of the suite's checks and `max_new_tokens` is for the
    suite's replies, both as `verify` has them.
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
        sets = [read_prompts(path, prompts) for path in (refused, harmless)]
        asked = _asked(base, tokenizer, sets, suite, limit, max_new_tokens)
        margins, tokens = read_gate(gate, base.path), max_new_tokens
        keeper = Gatekeeper(base, given, asked, margins, asked_of, on_progress, open_engine, tokens)
        reports = tuple(keeper.pair(one, other) for one, other in opened)
        others = tuple(keeper.control(open_artifact(path)) for path in controls)
        tokenizer.close()
        name = base.path.resolve().name
        files = {"refused": refused, "harmless": harmless}
        digests = {kind: hash_file(path) for kind, path in files.items()}
        if asked.suite_sha256:
            digests["suite"] = asked.suite_sha256
    return GateReport(tool_version(), name, given.record(), digests, asked_of, reports, others)


def read_pairs(texts: Sequence[str]) -> list[Pair]:
    """`UNEDITED,EDITED`, as the command line has it."""
    found = []
    for text in texts:
        one, comma, other = text.partition(",")
        if not (one and comma and other) or "," in other:
            raise InputError(f"--pair {text!r}: expected UNEDITED,EDITED")
        found.append((Path(one), Path(other)))
    return found


def read_prompts(path: Path, count: int | None = None) -> list[Conversation]:
    """The conversations of a file, or so many of them at equal distances."""
    found = read_conversations(path)
    return [found[place] for place in spread(len(found), count or len(found))]


def _asked(
    base: Checkpoint,
    tokenizer: Tokenizer,
    sets: Sequence[Sequence[Conversation]],
    suite: Path | None,
    limit: int | None,
    max_new_tokens: int,
) -> Asked:
    def reference(conversations: Sequence[Conversation], tokens: int) -> Reference:
        prompts = make_prompts(base, tokenizer, conversations, tokens)
        return Reference(base, tokenizer, tuple(conversations), prompts)

    chosen, digest = None, ""
    if suite is not None:
        read = read_suite(suite, base.path, limit)
        kept = [c for c in read.conversations if c.expected is None or not c.expected.refusal]
        chosen, digest = reference(kept, max_new_tokens), read.sha256
    refused, harmless = (reference(conversations, REPLY_TOKENS) for conversations in sets)
    return Asked(refused, harmless, chosen, digest)
