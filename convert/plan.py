"""The first pass: everything about the outputs that headers decide, before a weight is read.

In: output tensors grouped into files by `gguf_plan` and the safetensors schemes' planner. Out: a
`Plan` that holds every header byte, the offset and size of every tensor of every file, which
encodings are shared between files, and what will be read and written. `--dry-run`, the disk check,
`inspect` of what would be made and the run itself all work from it; nothing is computed twice.

A tensor that several files store in the same way is one `Encoding` with several slots: it is
encoded once and written to each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from convert.checkpoint import Checkpoint
from convert.output_tensor import OutputTensor
from convert.tensor import TensorInfo


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """An output tensor in its file: where each of its parts begins, from the file's start."""

    tensor: OutputTensor
    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file to be written: `header` at its start, then tensors; without tensors, all of it."""

    path: str
    header: bytes
    size_bytes: int
    tensors: tuple[PlacedTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class PlannedArtifact:
    """One thing that is published under one name: a GGUF file, or a folder.

    `copies` are side files of the checkpoint, copied byte for byte into the folder. File paths
    are relative to the output folder. `notes` say how it was chosen, `warnings` what to look at.
    """

    name: str
    target: str
    files: tuple[PlannedFile, ...]
    copies: tuple[str, ...] = ()
    is_folder: bool = False
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the planned files; copied side files are not counted."""
        return sum(file.size_bytes for file in self.files)

    @property
    def numerics(self) -> tuple[str, ...]:
        """The numerics profiles of its schemes."""
        return tuple(sorted({placed.tensor.scheme.numerics for placed in _placed(self)}))

    def fingerprint(self, checkpoint: Checkpoint, tool: str) -> str:
        """What decides its bytes: source, headers, schemes, side files, tool version."""
        digest = hashlib.sha256(f"{tool}\n{checkpoint.fingerprint()}\n{self.numerics}".encode())
        for file in self.files:
            digest.update(repr((file.path.rpartition("/")[2], file.size_bytes)).encode())
            digest.update(file.header)
        for placed in _placed(self):
            tensor = placed.tensor
            digest.update(repr((tensor.name, tensor.scheme, tensor.importance)).encode())
        for copy in self.copies:
            digest.update(copy.encode())
            checkpoint.read_side_file(copy, digest.update)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Slot:
    """One place an encoding is written to: the tensor's index in a file, each part's offset."""

    file: str
    index: int
    offsets: tuple[int, ...]

    @property
    def key(self) -> tuple[str, int]:
        """File and index: what tells a slot from every other."""
        return self.file, self.index


@dataclass(frozen=True, slots=True)
class Encoding:
    """One distinct (sources, order, scheme, importance) and every place that wants its bytes."""

    tensor: OutputTensor
    slots: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does: artifacts to write, encodings to compute, bytes to move.

    `edited` are the source tensors that are read through an edit, which needs all of each first.
    """

    artifacts: tuple[PlannedArtifact, ...]
    encodings: tuple[Encoding, ...]
    read_bytes: int
    write_bytes: int
    edited: tuple[TensorInfo, ...] = ()

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """Every file of every artifact."""
        return tuple(file for artifact in self.artifacts for file in artifact.files)


def part_spans(
    tensor: OutputTensor, offsets: Sequence[int], start: int, stop: int
) -> list[tuple[int, int]]:
    """Where rows `start` to `stop` of a tensor lie: offset and size for each of its parts.

    A part whose step is longer than the block (one scale for the whole tensor) belongs to the rows
    that its step begins with, and is of size 0 for all others.
    """
    return [
        (offset + part.offset(start), part.size_bytes(stop - start))
        if start % part.rows_per_step == 0
        else (offset, 0)
        for part, offset in zip(tensor.parts, offsets, strict=True)
    ]


def plan_run(
    artifacts: Sequence[PlannedArtifact], edited: Collection[str] = (), edit_reads: int = 0
) -> Plan:
    """Merge equal encodings over all artifacts and count bytes read and written.

    A tensor is read once for all encodings, once more if a reduction needs it first, and
    `edit_reads` times if it is one of the `edited`.
    """
    by_key: dict[tuple[object, ...], tuple[OutputTensor, list[Slot]]] = {}
    for artifact in artifacts:
        for file in artifact.files:
            for index, placed in enumerate(file.tensors):
                _, slots = by_key.setdefault(placed.tensor.encoding_key(), (placed.tensor, []))
                slots.append(Slot(file.path, index, placed.offsets))
    encodings = tuple(Encoding(tensor, tuple(slots)) for tensor, slots in by_key.values())
    encoded_from = {s.tensor.name: s.tensor for e in encodings for s in e.tensor.sources}
    reduced = {
        (e.tensor.reduction_key(), s): (s.stop - s.start) * s.tensor.row_bytes
        for e in encodings
        if e.tensor.scheme.needs_reduce
        for s in e.tensor.sources
    }
    through = tuple(t for t in encoded_from.values() if t.name in edited)
    measured = sum(reduced.values()) + edit_reads * sum(t.size_bytes for t in through)
    return Plan(
        artifacts=tuple(artifacts),
        encodings=encodings,
        read_bytes=sum(t.size_bytes for t in encoded_from.values()) + measured,
        write_bytes=sum(artifact.size_bytes for artifact in artifacts),
        edited=through,
    )


def _placed(artifact: PlannedArtifact) -> Iterable[PlacedTensor]:
    return (placed for file in artifact.files for placed in file.tensors)
