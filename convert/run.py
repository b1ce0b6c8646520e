"""The second pass: read every weight once, write every output, publish what is complete.

In: a `Plan` and its checkpoint. Out: `Artifact`s under their final names. The unit of work is a
block of rows of one source tensor: read, checked to be finite, widened once, handed to every
encoding that wants it, and each result written to every file that holds it. Blocks are independent
(offsets come from the plan), so they run on a thread pool in any order; numpy, ggml and the reads
and writes release the interpreter lock. A block is sized so that all threads together stay under
the memory budget, whatever the tensor.

convert never imports quantize: the schemes arrive inside the plan.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert import staging
from convert.checkpoint import Checkpoint
from convert.errors import OutputError
from convert.output_tensor import Encoded
from convert.plan import Encoding, Plan, PlannedArtifact, PlannedFile, plan_run
from convert.staging import Artifact, ArtifactFile
from convert.tensor import Block, TensorInfo

Progress = Callable[[int, int, str], None]
"""Called with bytes read so far, bytes to read in all, and the tensor just finished."""

DEFAULT_BUDGET_BYTES = 1 << 30
WORKING_BYTES_PER_VALUE = 40
"""Memory one value of a block may take: stored, widened, reordered, encoded, temporaries."""
MAX_BLOCK_VALUES = 1 << 20
"""Larger blocks gain nothing and leave the processor's caches."""


@dataclass(frozen=True, slots=True)
class Result:
    """A finished artifact; `kept` if it was there already, complete and from the same inputs."""

    artifact: Artifact
    kept: bool


@dataclass(frozen=True, slots=True)
class _Use:
    """An encoding's interest in a source tensor: rows from `start` to `stop` become output rows."""

    encoding: Encoding
    start: int
    stop: int
    output_row: int


def block_values(budget_bytes: int, threads: int) -> int:
    """Values per block so that `threads` blocks fit into the budget."""
    return min(MAX_BLOCK_VALUES, budget_bytes // threads // WORKING_BYTES_PER_VALUE)


def working_memory_bytes(budget_bytes: int, threads: int) -> int:
    """Upper bound of the memory that blocks take while a run goes on."""
    return block_values(budget_bytes, threads) * threads * WORKING_BYTES_PER_VALUE


def run(
    plan: Plan,
    checkpoint: Checkpoint,
    out: Path,
    *,
    source: Mapping[str, Any],
    recipe: Mapping[str, Any],
    tool: str,
    force: bool = False,
    threads: int | None = None,
    budget_bytes: int = DEFAULT_BUDGET_BYTES,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Make every artifact of `plan` in the folder `out`; those already there and equal are kept.

    Raises OutputError when a name is taken by something else and `force` is not set, or when the
    disk is full; whatever is raised, nothing incomplete is left under a final name.
    """
    killed = (out / staging.STAGING_NAME).exists()  # a run, that is; it is mended first
    done, todo = ({}, []) if killed else _split_finished(plan, checkpoint, out, tool, force)
    if todo or killed:
        with staging.staging_folder(out) as folder:
            # Once more, now that nobody else writes here: another run may just have ended.
            done, todo = _split_finished(plan, checkpoint, out, tool, force)
            work = plan_run([artifact for artifact, _ in todo])
            _check_space(folder, work, checkpoint)
            tally = _write_all(
                work, checkpoint, folder, threads or os.cpu_count() or 1, budget_bytes, on_progress
            )
            checkpoint.check_unchanged()
            for planned, fingerprint in todo:
                artifact = Artifact(
                    name=planned.name,
                    target=planned.target,
                    files=_finish_files(planned, checkpoint, folder),
                    source=dict(source),
                    recipe=dict(recipe),
                    numerics=planned.numerics,
                    values_changed=sum(tally[file.path] for file in planned.files),
                    fingerprint=fingerprint,
                    tool=tool,
                )
                with DiskErrors(folder / planned.name):
                    staging.write_sidecar(folder, artifact, is_folder=planned.is_folder)
                    if planned.is_folder:
                        staging.flush(folder / planned.name)
                staging.publish(folder, out, artifact, is_folder=planned.is_folder)
                done[planned.name] = Result(artifact, kept=False)
    return [done[artifact.name] for artifact in plan.artifacts]


def _split_finished(
    plan: Plan, checkpoint: Checkpoint, out: Path, tool: str, force: bool
) -> tuple[dict[str, Result], list[tuple[PlannedArtifact, str]]]:
    done: dict[str, Result] = {}
    todo: list[tuple[PlannedArtifact, str]] = []
    for planned in plan.artifacts:
        fingerprint = planned.fingerprint(checkpoint, tool)
        found = staging.finished(
            out, planned.name, is_folder=planned.is_folder, fingerprint=fingerprint
        )
        if found is not None and not force:
            done[planned.name] = Result(found, kept=True)
            continue
        if (out / planned.name).exists() and not force:
            raise OutputError(
                f"{out / planned.name}: exists and was not made from this source by this version"
                " with these options; move it away or pass --force to replace it"
            )
        todo.append((planned, fingerprint))
    return done, todo


def disk_bytes(plan: Plan, checkpoint: Checkpoint) -> int:
    """Bytes on disk that the plan's outputs take, copied side files included."""
    copies = [copy for artifact in plan.artifacts for copy in artifact.copies]
    return plan.write_bytes + sum((checkpoint.path / copy).stat().st_size for copy in copies)


def _check_space(folder: Path, plan: Plan, checkpoint: Checkpoint) -> None:
    needed = disk_bytes(plan, checkpoint)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder.parent}: {needed:,} bytes are needed and {free:,} are free; make room or"
            " choose another --out"
        )


def _write_all(
    plan: Plan,
    checkpoint: Checkpoint,
    folder: Path,
    threads: int,
    budget_bytes: int,
    on_progress: Progress | None,
) -> dict[str, int]:
    """Create every file, encode every block; returns how many values changed, by file."""
    writer = _Writer(checkpoint, folder, plan, on_progress)
    try:
        for file in plan.files:
            writer.create(file)
        checkpoint.open_shards()
        values = block_values(budget_bytes, threads)
        with ThreadPoolExecutor(threads) as pool:
            writer.reduce_groups(plan, values, pool)
            _run_all(pool, [partial(writer.encode, *unit) for unit in _units(plan, values)])
        writer.write_computed(plan)
    finally:
        writer.close()
    return writer.changed


def _run_all(pool: ThreadPoolExecutor, jobs: Iterable[Callable[[], None]]) -> None:
    """Run jobs on the pool; the first error, or Ctrl-C, cancels what has not begun."""
    futures = [pool.submit(job) for job in jobs]
    try:
        finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in finished:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _uses(plan: Plan) -> dict[str, tuple[TensorInfo, list[_Use]]]:
    """Who wants the rows of which source tensor."""
    uses: dict[str, tuple[TensorInfo, list[_Use]]] = {}
    for encoding in plan.encodings:
        row = 0
        for source in encoding.tensor.sources:
            _, wanted = uses.setdefault(source.tensor.name, (source.tensor, []))
            wanted.append(_Use(encoding, source.start, source.stop, row))
            row += source.stop - source.start
    return uses


def _units(plan: Plan, values: int) -> Iterator[tuple[TensorInfo, int, int, list[_Use]]]:
    """Blocks of whole steps of every encoding, in the order of the source files."""
    for info, wanted in _uses(plan).values():
        step = math.lcm(*(use.encoding.tensor.block_rows for use in wanted))
        for start, stop in _row_blocks(info, info.rows, step, values):
            yield info, start, stop, wanted


def _row_blocks(info: TensorInfo, rows: int, step: int, values: int) -> Iterator[tuple[int, int]]:
    """`rows` rows of `info` in blocks of whole steps, about `values` values each."""
    block = max(values // max(info.columns, 1) // step, 1) * step
    for start in range(0, rows, block):
        yield start, min(start + block, rows)


class _Writer:
    """The open output files of one run, and what its threads share."""

    def __init__(
        self, checkpoint: Checkpoint, folder: Path, plan: Plan, on_progress: Progress | None
    ) -> None:
        self.checkpoint, self.folder, self.on_progress = checkpoint, folder, on_progress
        self.descriptors: dict[str, int] = {}
        self.states: dict[tuple[object, str], Any] = {}
        self.changed: dict[str, int] = defaultdict(int)
        self.read_bytes, self.total_bytes = 0, plan.read_bytes
        self.lock = threading.Lock()

    def create(self, file: PlannedFile) -> None:
        """Create a file at its full size with its header in place and its space reserved."""
        path = self.folder / file.path
        with DiskErrors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            self.descriptors[file.path] = descriptor
            if file.size_bytes:
                os.posix_fallocate(descriptor, 0, file.size_bytes)
        self.write(file.path, memoryview(file.header), 0)

    def write(self, file: str, data: memoryview, offset: int) -> None:
        with DiskErrors(self.folder / file):
            while data:
                count = os.pwrite(self.descriptors[file], data, offset)
                data, offset = data[count:], offset + count

    def close(self) -> None:
        """Flush and close every file."""
        for file, descriptor in self.descriptors.items():
            try:
                with DiskErrors(self.folder / file):
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self.descriptors = {}

    def reduce_groups(self, plan: Plan, values: int, pool: ThreadPoolExecutor) -> None:
        """Fold every block of every group that needs it into the group's state."""
        groups: dict[tuple[object, str], list[Encoding]] = defaultdict(list)
        for encoding in plan.encodings:
            if encoding.tensor.scheme.needs_reduce:
                groups[encoding.tensor.reduction_key()].append(encoding)

        def reduce(key: tuple[object, str], members: list[Encoding]) -> None:
            state, scheme = None, members[0].tensor.scheme
            for source in dict.fromkeys(s for member in members for s in member.tensor.sources):
                first, rows = source.start, source.stop - source.start
                for start, stop in _row_blocks(source.tensor, rows, scheme.block_rows, values):
                    block = self.read(source.tensor, first + start, first + stop)
                    block.check_finite()
                    state = scheme.reduce(state, block)
            with self.lock:
                self.states[key] = state

        _run_all(pool, [partial(reduce, key, members) for key, members in groups.items()])

    def read(self, info: TensorInfo, start: int, stop: int) -> Block:
        block = self.checkpoint.read_rows(info, start, stop)
        with self.lock:
            self.read_bytes += block.raw.nbytes
            if self.on_progress:
                self.on_progress(self.read_bytes, self.total_bytes, info.name)
        return block

    def encode(self, info: TensorInfo, start: int, stop: int, uses: list[_Use]) -> None:
        """Read one block and write it wherever it is wanted."""
        whole = self.read(info, start, stop)
        whole.check_finite()
        permuted: dict[object, Block] = {}
        for use in uses:
            first, last = max(start, use.start), min(stop, use.stop)
            if first >= last:
                continue
            tensor = use.encoding.tensor
            block = whole
            if (first, last) != (start, stop):
                raw = whole.raw[first - start : last - start]
                block = Block(info.name, info.dtype, first, raw)
            if tensor.row_order is not None:
                key = (tensor.row_order, first, last)
                if key not in permuted:
                    permuted[key] = _permute(block, tensor.row_order.order, tensor.shape)
                block = permuted[key]
            self.store(use.encoding, block, use.output_row + first - use.start)

    def store(self, encoding: Encoding, block: Block, row: int) -> None:
        """Encode a block that begins at output row `row` and write it to every slot."""
        tensor = encoding.tensor
        state = self.states.get(tensor.reduction_key())
        encoded: Encoded = tensor.scheme.encode(block, state, tensor.importance_at(row))
        parts = list(zip(tensor.parts, encoded.parts, strict=True))
        for slot in encoding.slots:
            for (part, data), offset in zip(parts, slot.offsets, strict=True):
                if data.size:  # a part of the whole tensor comes with one of its blocks only
                    self.write(slot.file, _bytes(data), offset + part.offset(row))
            if encoded.changed:
                with self.lock:
                    self.changed[slot.file] += encoded.changed

    def write_computed(self, plan: Plan) -> None:
        """Write the tensors that come from no checkpoint tensor."""
        for encoding in plan.encodings:
            if not encoding.tensor.sources:
                values = np.array(encoding.tensor.computed, dtype=np.float32)
                raw = values.reshape(encoding.tensor.rows, -1)
                self.store(encoding, Block(encoding.tensor.name, "F32", 0, raw), 0)


def _permute(
    block: Block, order: Callable[[int], NDArray[np.intp]], shape: tuple[int, ...]
) -> Block:
    """A block in output order; a vector (one row) is reordered along its values."""
    if len(shape) == 1:
        raw = np.ascontiguousarray(block.raw[:, order(block.raw.shape[1])])
        return Block(block.name, block.dtype, block.first_row, raw)
    return block.permuted(order(block.raw.shape[0]))


def _bytes(data: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data


def _finish_files(
    planned: PlannedArtifact, checkpoint: Checkpoint, folder: Path
) -> tuple[ArtifactFile, ...]:
    """Copy the side files, then hash everything with one sequential read a file."""
    for copy in planned.copies:
        target = folder / planned.name / copy
        with DiskErrors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.path / copy, target)
            staging.flush(target)
    paths = [file.path for file in planned.files]
    paths += [f"{planned.name}/{copy}" for copy in planned.copies]
    return tuple(
        ArtifactFile(path, (folder / path).stat().st_size, staging.hash_file(folder / path))
        for path in sorted(paths)
    )


class DiskErrors:
    """Turns an OSError while writing `path` into an OutputError with the cause in plain words."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        name = self.path.name
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"{name}: the disk is full; nothing was left behind. Make room or choose another"
                " --out"
            ) from error
        raise OutputError(f"{name}: cannot be written: {error.strerror}") from error
