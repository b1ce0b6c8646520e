"""An artifact whose tensors another library computes: planned, staged and published like any other.

In: a planned artifact and `fill`, which leaves the tensors as safetensors files in a folder it is
given. Out: the artifact under its final name. What was left there is held against the plan, tensor
by tensor: a name that is missing or not planned, another dtype or shape is an error, because then
the library is not of the version that the plan was made for. Bytes are copied to the planned
places; computed tensors are encoded here; side files are the source's, so whatever the library
wrote beside the tensors (a tokenizer that cuts prompts, a config of its own) reaches nobody.

Nothing of it can be taken up by a later run: one that was stopped starts afresh.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from convert import staging
from convert.checkpoint import CONFIG_NAME, Checkpoint
from convert.errors import OutputError, UnsupportedError
from convert.finishing import finish_files, paths_of, publish
from convert.output_tensor import OutputTensor, Part
from convert.plan import PlannedArtifact
from convert.run import Result, split_finished
from convert.safetensors import read_header
from convert.staged_files import StagedFiles
from convert.staging import Artifact
from convert.tensor import Block, TensorInfo
from convert.workers import Progress

Fill = Callable[[Path], Mapping[str, Any]]
"""Leaves the artifact's tensors in the folder it is given, in any number of safetensors files;
returns what the artifact's recipe is to say of how they were computed."""
_MADE = ".made"
_CHUNK_BYTES = 1 << 24


def make_elsewhere(
    planned: PlannedArtifact,
    checkpoint: Checkpoint,
    out: Path,
    fill: Fill,
    *,
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    tool: str,
    force: bool,
    threads: int,
    on_progress: Progress | None,
    later: Sequence[PlannedArtifact] = (),
) -> Result:
    """Make one artifact in the folder `out`; an equal one that is there already is kept.

    `later` are those that are to be made after it, and must find room too. Raises OutputError where
    something else has the name and `force` is not set, or the disk is too small; UnsupportedError
    for tensors that were not planned. Whatever is raised, nothing incomplete is left.
    """
    fingerprint = planned.fingerprint(checkpoint, tool)
    with staging.staging_folder(out) as folder:
        staging.check_names(out, [planned.name])
        # Nobody else writes here now, and what a killed run had moved aside is back.
        done, _ = split_finished([planned], checkpoint, tool, out, force)
        if done:
            return done[planned.name]
        checkpoint.check_unchanged([*checkpoint.shards, CONFIG_NAME, *planned.copies])
        scratch = folder / f"{planned.name}{_MADE}"
        places = (scratch, folder / planned.name)
        _remove(places)
        try:
            _check_space(folder, [planned, *later], checkpoint)
            scratch.mkdir()
            how = fill(scratch)
            checkpoint.check_unchanged(checkpoint.shards)
            _place(planned, scratch, folder)
            staging.remove(scratch)
            files = finish_files([planned], checkpoint, folder, threads, on_progress)
            artifact = Artifact(
                name=planned.name,
                target=planned.target,
                files=tuple(files[path] for path in paths_of(planned)),
                source=dict(source),
                recipe={**recipe, **how},
                numerics=planned.numerics,
                values_changed=0,
                fingerprint=fingerprint,
                tool=tool,
            )
            publish(planned, artifact, folder, out)
        finally:
            with suppress(OSError):  # what is to be told is why it was not made
                _remove(places)
    return Result(artifact, kept=False)


def _remove(places: Sequence[Path]) -> None:
    for place in places:
        if place.exists():
            staging.remove(place)


def peak_bytes(planned: Sequence[PlannedArtifact], checkpoint: Checkpoint) -> int:
    """Bytes on disk that it takes to make these one after the other.

    The tensors of each lie there twice for a while: as they were left, and in their places.
    """
    made = highest = 0
    for artifact in planned:
        whole = artifact.size_bytes + checkpoint.side_file_bytes(artifact.copies)
        highest = max(highest, made + artifact.size_bytes + whole)
        made += whole
    return highest


def _check_space(folder: Path, planned: Sequence[PlannedArtifact], checkpoint: Checkpoint) -> None:
    needed, free = peak_bytes(planned, checkpoint), shutil.disk_usage(folder).free
    if needed > free:
        names = ", ".join(artifact.name for artifact in planned)
        raise OutputError(
            f"{folder.parent}: {names} takes {needed:,} bytes while it is made and"
            f" {free:,} are free; make room or choose another --out"
        )


def _place(planned: PlannedArtifact, scratch: Path, folder: Path) -> None:
    """Copy every tensor from where it was left to where it was planned."""
    left = {
        info.name: info
        for path in sorted(scratch.glob("*.safetensors"))
        for info in read_header(path, path.name)
    }
    files = StagedFiles(folder)
    try:
        files.create(planned.files)
        for file in planned.files:
            for placed in file.tensors:
                tensor = placed.tensor
                computed = _computed(tensor) if tensor.computed else None
                for index, (part, offset) in enumerate(
                    zip(tensor.parts, placed.offsets, strict=True)
                ):
                    info = left.pop(tensor.name + part.suffix, None)
                    if computed is not None:
                        files.write(file.path, computed[index], offset)
                        continue
                    found = _checked(planned, tensor.name + part.suffix, part, info)
                    _copy(scratch / found.file, found, files, file.path, offset)
        if left:
            raise UnsupportedError(_unlike(planned, min(left), "stored", "no such tensor"))
        files.sync()
    finally:
        files.close()


def _computed(tensor: OutputTensor) -> list[memoryview]:
    raw = np.array(tensor.computed, dtype=np.float32).reshape(tensor.rows, -1)
    parts = tensor.scheme.encode(Block(tensor.name, "F32", 0, raw), None, None).parts
    return [np.ascontiguousarray(part).reshape(-1).view(np.uint8).data for part in parts]


def _checked(
    planned: PlannedArtifact, name: str, part: Part, info: TensorInfo | None
) -> TensorInfo:
    expected = f"{part.dtype} {list(part.shape)}"
    if info is None:
        raise UnsupportedError(_unlike(planned, name, "missing", expected))
    if (info.dtype, info.shape) != (part.dtype, part.shape):
        found = f"stored as {info.dtype} {list(info.shape)}"
        raise UnsupportedError(_unlike(planned, name, found, expected))
    return info


def _unlike(planned: PlannedArtifact, name: str, found: str, expected: str) -> str:
    made_by = ", ".join(planned.numerics)
    return (
        f"{planned.name}: {name} is {found}; expected {expected} of {made_by}. Install the version"
        " that constraints.txt names"
    )


def _copy(path: Path, info: TensorInfo, files: StagedFiles, file: str, offset: int) -> None:
    with path.open("rb") as stream:
        stream.seek(info.offset)
        left = info.size_bytes
        while left:
            data = stream.read(min(left, _CHUNK_BYTES))
            assert data, f"{path}: ends inside {info.name}"
            files.write(file, memoryview(data), offset)
            left, offset = left - len(data), offset + len(data)
