"""The importance matrix a GGUF was made with: the one it names, and whether that is the one given.

In: a GGUF, the imatrix that the user gave, if any, and the source. Out: a `Choice`: with which
imatrix the file is to be encoded again, and what is to be said of it. llama-quantize writes

    quantize.imatrix.file            the path, cut after 127 bytes; only its last part is told here
    quantize.imatrix.dataset         what the imatrix says it was made from
    quantize.imatrix.entries_count   matrices in it
    quantize.imatrix.chunks_count    chunks of text it was made over

(tools/quantize/quantize.cpp, MIT). An imatrix with other counts is another one and is not used; one
of another name is, as files get renamed, and the bytes tell. A file that names none, ours among
them, is tried on its first rows: the imatrix is used where these are what encoding with it gives,
and not what encoding without it gives. Therefore one imatrix can be given for many files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.families import family_of
from convert.gguf_plan import GGUFOutput, gguf_outputs
from convert.gguf_reader import GGUFFile
from convert.output_tensor import Importance
from quantize.importance import ImportanceFile, importance_for
from verify.check import Finding
from verify.gguf_rows import as_stored, encode_rows, places_of, stored_rows

FILE, DATASET = "quantize.imatrix.file", "quantize.imatrix.dataset"
ENTRIES, CHUNKS = "quantize.imatrix.entries_count", "quantize.imatrix.chunks_count"
_CUT_BYTES = 127
"""llama-quantize keeps so many bytes of a text."""


class Use(StrEnum):
    """What became of the imatrix."""

    NONE = "none"
    NOT_GIVEN = "named, not given"
    GIVEN = "given"
    ANOTHER = "named, another given"
    NOT_ITS_OWN = "given, not what the file was made with"


@dataclass(frozen=True, slots=True)
class Choice:
    """The imatrix to encode with; what a verdict says of it, and the findings."""

    importance: ImportanceFile | None
    use: Use
    said: str = ""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Stated:
    """What a header says of the imatrix; None where it does not say."""

    name: str
    was_cut: bool
    entries: int | None
    chunks: int | None

    def __str__(self) -> str:
        return f"{self.name!r}{_counts(self.entries, self.chunks)}"

    def is_called(self, name: str) -> bool:
        """Whether a file of this name may be the one."""
        return name == self.name or (self.was_cut and name.startswith(self.name))

    def has_counts_of(self, given: ImportanceFile) -> bool:
        """Whether entries and chunks are those of the file, as far as both say it."""
        pairs = ((self.entries, len(given.means)), (self.chunks, given.chunks))
        return all(None in pair or pair[0] == pair[1] for pair in pairs)


def stated_imatrix(fields: Mapping[str, Any]) -> Stated | None:
    """What a header says; None where it names no imatrix."""
    path = fields.get(FILE, fields.get(DATASET))
    if not any(key in fields for key in (FILE, DATASET, ENTRIES, CHUNKS)):
        return None
    text = path if isinstance(path, str) else ""
    counts = [v if isinstance(v := fields.get(key), int) else None for key in (ENTRIES, CHUNKS)]
    return Stated(re.split(r"[/\\]", text)[-1], len(text.encode()) >= _CUT_BYTES, *counts)


def choose_imatrix(file: GGUFFile, given: ImportanceFile | None, source: Checkpoint) -> Choice:
    """Which imatrix a file is to be encoded again with."""
    stated = stated_imatrix(file.fields)
    if given is None:
        if stated is None:
            return Choice(None, Use.NONE)
        said = f"it names the imatrix {stated}, which was not given"
        return _say(None, Use.NOT_GIVEN, said, "give it with --imatrix to compare bytes")
    outputs = gguf_outputs(
        source.spec, family_of(source.spec).recognise(source.spec, source.tensors)
    )
    weights = _weights(given, outputs)
    if stated is None:
        made_with = weights is not None and _made_with(file, weights, outputs, source)
        return Choice(given, Use.GIVEN) if made_with else Choice(None, Use.NOT_ITS_OWN)
    ours = f"{given.name!r}{_counts(len(given.means), given.chunks)}"
    if weights is None or not stated.has_counts_of(given):
        said = f"it names the imatrix {stated}, and the one given is another, {ours}"
        return _say(None, Use.ANOTHER, said, "give the one it names; this one was not used")
    if stated.is_called(given.name):
        return Choice(given, Use.GIVEN)
    said = f"it names the imatrix {stated}, and the one given is called {ours}"
    return _say(given, Use.GIVEN, said, "it was used, and the bytes tell whether it is the same")


def _weights(given: ImportanceFile, outputs: Sequence[GGUFOutput]) -> dict[str, Importance] | None:
    """Importance by tensor; None of an imatrix of another model."""
    try:
        return importance_for(given, outputs)
    except InputError:
        return None


def _say(importance: ImportanceFile | None, use: Use, said: str, remedy: str) -> Choice:
    return Choice(importance, use, said, (Finding(FILE, f"{said}; {remedy}"),))


def _counts(entries: int | None, chunks: int | None) -> str:
    known = ((entries, "entry", "entries"), (chunks, "chunk", "chunks"))
    found = [f"{n} {one if n == 1 else more}" for n, one, more in known if n is not None]
    return f" ({', '.join(found)})" if found else ""


def _made_with(
    file: GGUFFile,
    weights: Mapping[str, Importance],
    outputs: Sequence[GGUFOutput],
    source: Checkpoint,
) -> bool:
    """Whether first rows are what encoding with the imatrix gives, where that decides it."""
    for output in outputs:
        importance = weights.get(output.tensor.name)
        if importance is not None:
            with_it, without = _same_bytes(file, source, output, (importance, None))
            if with_it != without:
                return with_it
    return False


def _same_bytes(
    file: GGUFFile,
    source: Checkpoint,
    output: GGUFOutput,
    candidates: Sequence[Importance | None],
) -> list[bool]:
    """Whether a tensor's first rows are encoded so, with each importance."""
    found = []
    stored = file.tensors.get(output.tensor.name)
    for importance in candidates:
        same = False
        if stored is not None and stored.shape == output.tensor.shape:
            tensor = as_stored(output, stored.ggml_type, importance)
            if tensor is not None:
                _, ours = encode_rows(source, tensor, next(places_of(tensor)))
                theirs = stored_rows(file, stored, tensor.rows).reshape(-1)[: ours.size]
                same = np.array_equal(ours, theirs)
        found.append(same)
    return found
