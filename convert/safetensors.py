"""The safetensors container: header in, header out.

A file is 8 bytes of little-endian header length N, N bytes of JSON, then the data. The JSON maps
each name to `{"dtype", "shape", "data_offsets": [begin, end]}` with offsets from the end of the
header; `__metadata__` maps strings to strings. A header comes from a stranger, so nothing in it is
believed before it is checked: length against the file, every range against its shape and dtype,
and the ranges against each other (no overlap, no hole, nothing beyond the end).

The layout written is the one of the safetensors library 0.8 (read from its files): tensors by
dtype in the order of `DTYPES` (wide ones first; BF16 before F16), then by name; the header is
padded with spaces to a multiple of 8.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.errors import CheckpointError
from convert.tensor import DTYPES, TensorInfo

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit; the largest header of a published Hermes shard is under 1 MB."""
MAX_DIMENSIONS = 64
"""numpy's limit; the product of a million sizes would take hours."""

MAX_EMPTY = 1 << 60
"""The sizes of a tensor without values have no file to be held against; numpy's limit is 2^63."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor to be written: name, dtype and shape as the header will state them."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """A file to be written: its header bytes, where each tensor starts, and its whole size."""

    header: bytes
    offsets: dict[str, int]
    size_bytes: int


def layout(tensors: Sequence[StoredTensor]) -> Layout:
    """Place `tensors` in a file; offsets count from the file's start."""
    rank = {dtype: i for i, dtype in enumerate(DTYPES)}
    ordered = sorted(tensors, key=lambda t: (rank[t.dtype], t.name))
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 8)
    header = len(text).to_bytes(8, "little") + text
    begin = 0
    offsets: dict[str, int] = {}
    for tensor in ordered:
        offsets[tensor.name] = len(header) + begin
        begin += tensor.size_bytes
    return Layout(header, offsets, len(header) + end)


def read_header(path: Path, file: str) -> list[TensorInfo]:
    """Read and check the header of one shard; tensors in the order of its JSON.

    `file` is the name the tensors remember. Raises CheckpointError, naming the file and what is
    wrong with it, for anything that does not add up.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path}: truncated or not a safetensors file: header of {length} bytes in a"
                    f" file of {size}; download it again"
                )
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path}: header of {length} bytes; the format allows {MAX_HEADER_BYTES}"
                )
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    tensors = [
        _tensor(path, file, name, entry, 8 + length)
        for name, entry in _json_object(path, text).items()
        if name != "__metadata__"
    ]
    _check_ranges(path, tensors, 8 + length, size)
    return tensors


def _json_object(path: Path, text: bytes) -> Mapping[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise CheckpointError(f"{path}: the header names a tensor twice")
        return found

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON ({error})") from error
    if not isinstance(parsed, dict):
        kind = type(parsed).__name__
        raise CheckpointError(f"{path}: the header is a JSON {kind}, not an object")
    return parsed


def _tensor(path: Path, file: str, name: str, entry: object, data_start: int) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets in the header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: shape {shape!r} or data_offsets {offsets!r} is malformed")
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"{where}: {len(shape)} dimensions; expected at most {MAX_DIMENSIONS}"
        )
    begin, end = offsets
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{where}: {end - begin} bytes in the header, but {dtype} {shape} takes {expected}"
        )
    if not expected and math.prod(size or 1 for size in shape) >= MAX_EMPTY:
        raise CheckpointError(
            f"{where}: shape {shape!r} holds nothing and is too large for an array"
        )
    return TensorInfo(name, dtype, tuple(shape), file, data_start + begin)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in value
    )


def _check_ranges(path: Path, tensors: Sequence[TensorInfo], data_start: int, size: int) -> None:
    """Data must be covered exactly once from the header's end to the file's end."""
    end = data_start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.size_bytes)):
        if tensor.offset != end:
            what = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole"
            raise CheckpointError(f"{path}: tensor {tensor.name!r} {what} at byte {tensor.offset}")
        end += tensor.size_bytes
    if end != size:
        kind = "truncated" if end > size else "longer than its header says"
        raise CheckpointError(
            f"{path}: {kind}: {size} bytes on disk, {end} by the header; download it again"
        )
