"""The verb `merge`: a split GGUF back into one file.

In: the first file of a split model. Out: the file as it would have been made without splitting:
the same fields but for `split.*`, the same tensors in the same order, byte for byte what `quantize`
or `convert` writes without `--split-max-size`. (llama-gguf-split leaves `split.*` in, with a count
of 0.) It is written under another name, flushed, and gets its final name last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from convert import staging
from convert.errors import CheckpointError, InputError, OutputError, UnsupportedError
from convert.gguf import ALIGNMENT, GGUFTensor, encode_header, pad
from convert.gguf_reader import GGUFFile, read_gguf
from convert.staged_files import DiskErrors

_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Merged:
    """What was written, and from how many files."""

    size_bytes: int
    sha256: str
    files: int


def merge(first: Path, out: Path, *, force: bool = False) -> Merged:
    """Write the split model that begins with `first` as the one file `out`."""
    model = read_gguf(first)
    if len(model.paths) == 1:
        raise InputError(f"{first}: is not split; there is nothing to merge")
    if model.fields.get("general.alignment", ALIGNMENT) != ALIGNMENT:
        raise UnsupportedError(f"{first}: general.alignment is not {ALIGNMENT}")
    if out.exists() and not (force and out.is_file()):
        raise OutputError(f"{out}: exists; move it away" + (" or pass --force" * out.is_file()))
    header, tensors = _layout(model)
    with staging.staging_folder(out.parent) as folder:
        temporary = folder / f"{out.name}.merged"
        try:
            with DiskErrors(out), temporary.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, _size_bytes(header, tensors))
                stream.write(header)
                for tensor in tensors:
                    _copy(model, tensor.name, stream)
                stream.flush()
                os.fsync(stream.fileno())
            size = temporary.stat().st_size
            with DiskErrors(out, "read"):
                digest = staging.hash_file(temporary)
            merged = Merged(size, digest, len(model.paths))
            with DiskErrors(out):
                temporary.replace(out)
                staging.flush(out.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return merged


def _layout(model: GGUFFile) -> tuple[bytes, list[GGUFTensor]]:
    """The header of the whole, and its tensors with offsets from the data's start."""
    tensors, offset = [], 0
    for tensor in model.tensors.values():
        tensors.append(replace(tensor, offset=offset, part=0))
        offset += pad(tensor.size_bytes)
    fields = [field for field in model.typed if not field.key.startswith("split.")]
    return encode_header(fields, tensors), tensors


def _size_bytes(header: bytes, tensors: list[GGUFTensor]) -> int:
    return len(header) + sum(pad(tensor.size_bytes) for tensor in tensors)


def _copy(model: GGUFFile, name: str, stream: BinaryIO) -> None:
    """Append one tensor's bytes and padding."""
    tensor = model.tensors[name]
    for chunk in _chunks(model.paths[tensor.part], tensor):
        stream.write(chunk)
    stream.write(bytes(pad(tensor.size_bytes) - tensor.size_bytes))


def _chunks(path: Path, tensor: GGUFTensor) -> Iterator[bytes]:
    try:
        with path.open("rb") as part:
            part.seek(tensor.offset)
            left = tensor.size_bytes
            while left:
                chunk = part.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise CheckpointError(
                        f"{path}: ends inside {tensor.name!r}; it was cut while it was read"
                    )
                yield chunk
                left -= len(chunk)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
