"""A suite: the conversations to verify with, where they come from, and a fair sample of them.

In: a JSONL file, a folder of them or one of BFCL's; without one, the `prompts` folder of the
reference. Out: a `Suite` whose conversations, and their later turns, have ids of their own across
all its files, and whose schemas are schemas.

A limited suite is an even sample: the conversations are put in order by file and tags, and taken at
equal distances, so that every kind keeps its share and the same limit always takes the same ones.
The digest is over the conversations used, not over file names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from convert.conversation import Conversation, read_conversations
from convert.errors import ConversationError, InputError
from verify.bfcl import is_bfcl, read_bfcl
from verify.call_schemas import is_schema

FOLDER = "prompts"


@dataclass(frozen=True, slots=True)
class Suite:
    """Conversations to verify with; `available` is how many the files hold."""

    name: str
    conversations: tuple[Conversation, ...]
    available: int

    @property
    def sha256(self) -> str:
        """A digest of the conversations, in order."""
        digest = hashlib.sha256()
        for conversation in self.conversations:
            digest.update(json.dumps(asdict(conversation), sort_keys=True).encode())
        return digest.hexdigest()

    @property
    def tags(self) -> dict[str, int]:
        """How many conversations carry each tag."""
        counts = Counter(tag for c in self.conversations for tag in c.tags)
        return dict(sorted(counts.items()))


def read_suite(path: Path | None, reference: Path, limit: int | None = None) -> Suite:
    """The suite at `path`, or the reference's own, cut to `limit` conversations."""
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} conversations; expected at least 1")
    place = reference / FOLDER if path is None else path
    read = list(read_bfcl(place)) if is_bfcl(place) else _read_jsonl(place, own=path is None)
    _reject_shared_ids(read)
    _reject_schemas(read)
    ordered = sorted(read, key=lambda pair: (pair[0].name, pair[1].tags))
    taken = spread(len(ordered), limit or len(ordered))
    return Suite(place.resolve().name, tuple(ordered[i][1] for i in taken), len(ordered))


def _read_jsonl(place: Path, *, own: bool) -> list[tuple[Path, Conversation]]:
    """Every conversation with the file it is from."""
    files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    if own and not (place.is_dir() and files):
        raise InputError(
            f"{place.parent}: no {FOLDER} folder with .jsonl files in it; say with --suite which"
            " conversations to verify with"
        )
    if not files:
        raise InputError(f"{place}: no .jsonl file in this folder")
    return [(file, conversation) for file in files for conversation in read_conversations(file)]


def _reject_shared_ids(read: list[tuple[Path, Conversation]]) -> None:
    first: dict[str, Path] = {}
    for file, conversation in read:
        if conversation.id in first:
            raise ConversationError(
                f"{file}: id {conversation.id!r} is also in {first[conversation.id].name}"
            )
        first[conversation.id] = file
    for file, conversation in read:
        for later in conversation.later_ids():
            if later in first:
                raise ConversationError(
                    f"{first[later]}: id {later!r} is also that of a later turn of"
                    f" {conversation.id!r} in {file.name}; rename it"
                )


def _reject_schemas(read: list[tuple[Path, Conversation]]) -> None:
    for file, conversation in read:
        for expected in (conversation.expected, *(turn.expected for turn in conversation.then)):
            schema = expected.json.schema if expected and expected.json else None
            if schema is not None and not is_schema(schema):
                raise ConversationError(
                    f"{file}: conversation {conversation.id!r}: schema is no JSON schema of draft"
                    " 2020-12, or refers to what is not in it; no reply can be judged by it"
                )


def spread(available: int, wanted: int) -> list[int]:
    """`wanted` places out of `available`, at equal distances, from the middle of each stretch."""
    wanted = min(wanted, available)
    return [(2 * i + 1) * available // (2 * wanted) for i in range(wanted)]
