"""The last phase of a run: whole files are hashed, described, and given their final names.

In: artifacts whose planned files lie complete and flushed in the staging folder. Out: the size and
sha256 of every file, each read once in order (several files at once), and the artifacts under their
final names. Side files of the checkpoint are copied here, byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from convert import staging
from convert.checkpoint import Checkpoint
from convert.plan import PlannedArtifact
from convert.staged_files import DiskErrors
from convert.staging import Artifact, ArtifactFile
from convert.workers import Meter, Progress, run_all


def finish_files(
    artifacts: Sequence[PlannedArtifact],
    checkpoint: Checkpoint,
    folder: Path,
    threads: int,
    on_progress: Progress | None,
) -> dict[str, ArtifactFile]:
    """Copy the side files, then hash everything with one sequential read a file."""
    for planned in artifacts:
        for copy in planned.copies:
            _copy(checkpoint, copy, folder / planned.name / copy)
        checkpoint.check_unchanged(planned.copies)  # else they are not what the sidecar says
    paths = [path for planned in artifacts for path in paths_of(planned)]
    sizes = {path: (folder / path).stat().st_size for path in paths}
    meter = Meter(on_progress, sum(sizes.values()))
    found: dict[str, ArtifactFile] = {}

    def hash_file(path: str) -> None:
        with DiskErrors(folder / path, "read"):
            digest = staging.hash_file(
                folder / path, lambda size: meter.add(size, f"hashing {path}")
            )
        found[path] = ArtifactFile(path, sizes[path], digest)

    run_all(threads, (partial(hash_file, path) for path in paths))
    return found


def _copy(checkpoint: Checkpoint, name: str, target: Path) -> None:
    """Copy a side file and flush it; an error says which of the two files it is about."""
    with DiskErrors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)

    def write(data: bytes) -> None:
        with DiskErrors(target):
            while data:
                data = data[os.write(descriptor, data) :]

    try:
        checkpoint.read_side_file(name, write)
        with DiskErrors(target):
            os.fsync(descriptor)
            staging.flush(target.parent)
    finally:
        os.close(descriptor)


def paths_of(planned: PlannedArtifact) -> list[str]:
    """Every file of an artifact, side files too, as a path in the output folder."""
    copies = (f"{planned.name}/{copy}" for copy in planned.copies)
    return sorted([*(file.path for file in planned.files), *copies])


def publish(planned: PlannedArtifact, artifact: Artifact, folder: Path, out: Path) -> None:
    """Describe a finished artifact and give it its final name."""
    with DiskErrors(folder / planned.name):
        staging.write_sidecar(folder, artifact, is_folder=planned.is_folder)
        if planned.is_folder:
            staging.flush(folder / planned.name)
    staging.publish(folder, out, artifact, is_folder=planned.is_folder)
