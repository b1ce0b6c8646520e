"""GGUF headers, read and checked: of one file, or of all files that a model is split over.

The reader believes no count, length or offset before it is held against the file's size, so a
hostile header ends in a CheckpointError, in time and memory proportional to the file. Quantized
values are not read here; `GGUFFile.read` gives the stored bytes of one tensor.

A split model is read through its first file, `<name>-00001-of-0000N.gguf`, which has all fields;
`split.no`, `split.count` and `split.tensors.count` of every file must agree (`llama-gguf-split`'s
convention, llama.cpp `src/llama.cpp` and `tools/gguf-split`, MIT).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from convert.errors import CheckpointError
from convert.gguf import (
    ALIGNMENT,
    ARRAY,
    GGML_TYPES,
    MAGIC,
    MAX_DIMENSIONS,
    SCALARS,
    SPLIT_NAME,
    STRING,
    Field,
    GGUFTensor,
    pad,
    split_name,
)

_TYPE_NAMES = {kind.number: name for name, kind in GGML_TYPES.items()}
_SCALARS = {number: (kind, code) for kind, (number, code) in SCALARS.items()}
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed header: values by key and tensors by name, in file order; `typed` has the kinds.

    `paths` are its files: one, or all parts of a split model in order.
    """

    paths: tuple[Path, ...]
    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    typed: tuple[Field, ...]

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return self.paths[0]

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(path.stat().st_size for path in self.paths)

    def read(self, name: str) -> bytes:
        """The stored bytes of one tensor."""
        tensor = self.tensors[name]
        with self.paths[tensor.part].open("rb") as stream:
            stream.seek(tensor.offset)
            return stream.read(tensor.size_bytes)


def read_gguf(path: Path) -> GGUFFile:
    """Read and check a GGUF file, or the split model whose first file it is.

    Raises CheckpointError on anything inconsistent.
    """
    first = read_gguf_file(path)
    count = first.fields.get(SPLIT_COUNT, 0)
    if not isinstance(count, int) or count < 2:
        return first
    match = SPLIT_NAME.fullmatch(path.name)
    if first.fields.get(SPLIT_NO) != 0 or not match or int(match[2]) != 1 or int(match[3]) != count:
        stem = match[1] if match else "NAME"
        raise CheckpointError(
            f"{path}: is one of {count} files of a split model; give the first, under its own name:"
            f" {split_name(stem, 0, count)}"
        )
    names = (split_name(match[1], i, count) for i in range(count))
    return _join(first, [read_gguf_file(path.with_name(name)) for name in names])


def _join(first: GGUFFile, parts: Sequence[GGUFFile]) -> GGUFFile:
    tensors: dict[str, GGUFTensor] = {}
    for number, part in enumerate(parts):
        found = (part.fields.get(SPLIT_NO), part.fields.get(SPLIT_COUNT))
        if found != (number, len(parts)):
            raise CheckpointError(
                f"{part.path}: says it is part {found[0]} of {found[1]}, its name says {number} of"
                f" {len(parts)} (counted from 0)"
            )
        for name, tensor in part.tensors.items():
            if name in tensors:
                other = parts[tensors[name].part].path.name
                raise CheckpointError(f"{part.path}: tensor {name!r} is in {other} too")
            tensors[name] = replace(tensor, part=number)
    stated = first.fields.get(SPLIT_TENSORS)
    if stated != len(tensors):
        raise CheckpointError(
            f"{first.path}: {SPLIT_TENSORS} is {stated}, the {len(parts)} files hold {len(tensors)}"
        )
    return GGUFFile(tuple(p.path for p in parts), first.fields, tensors, first.typed)


def read_gguf_file(path: Path) -> GGUFFile:
    """Read and check one file, whether or not it is part of a split model."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != MAGIC:
                raise CheckpointError(f"{path}: not a GGUF file (the first four bytes differ)")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


class Bytes(Protocol):
    """The bytes of a file, wherever it is: a mapped one, or one that is read by ranges."""

    def __len__(self) -> int:
        """The size of the whole file."""
        ...

    def __getitem__(self, span: slice) -> bytes:
        """Bytes `span.start` to `span.stop`, fewer at the file's end."""
        ...


def read_gguf_bytes(path: Path, data: Bytes) -> GGUFFile:
    """`read_gguf_file` for a file that is not on disk; `path` is what messages call it."""
    if data[0:4] != MAGIC:
        raise CheckpointError(f"{path}: not a GGUF file (the first four bytes differ)")
    return _Reader(path, data).read()


class _Reader:
    """A cursor over the file; every step is checked against the file's end."""

    def __init__(self, path: Path, data: Bytes) -> None:
        self.path, self.data, self.at = path, data, 4

    def read(self) -> GGUFFile:
        version, tensor_count, field_count = self.unpack("<IQQ")
        if version not in (2, 3):
            raise self.error(f"GGUF version {version}; versions 2 and 3 are supported")
        self.check_count(tensor_count, 8 + 4 + 4 + 8, "tensors")
        self.check_count(field_count, 8 + 4 + 1, "fields")
        found_fields: dict[str, Field] = {}
        for _ in range(field_count):
            key = self.string()
            if key in found_fields:
                raise self.error(f"key {key!r} occurs twice")
            found_fields[key] = self.field(key)
        fields = {key: field.value for key, field in found_fields.items()}
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.error(f"general.alignment is {alignment!r}; expected a power of two")
        found = [self.tensor(alignment) for _ in range(tensor_count)]
        data_offset = pad(self.at, alignment)
        tensors = {t.name: t for t in self.place(found, data_offset)}
        if len(tensors) != len(found):
            raise self.error("two tensors have the same name")
        return GGUFFile((self.path,), fields, tensors, tuple(found_fields.values()))

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {message}")

    def unpack(self, code: str) -> tuple[Any, ...]:
        size = struct.calcsize(code)
        try:
            values = struct.unpack(code, self.data[self.at : self.at + size])
        except struct.error as error:
            raise self.error(f"the header ends at byte {len(self.data)}, inside a value") from error
        self.at += size
        return values

    def check_count(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > len(self.data) - self.at:
            raise self.error(f"claims {count} {what}; the file has {len(self.data)} bytes in all")

    def string(self) -> str:
        (length,) = self.unpack("<Q")
        self.check_count(length, 1, "bytes of text")
        text = self.data[self.at : self.at + length]
        self.at += length
        try:
            return text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise self.error(f"text at byte {self.at - length} is not UTF-8") from error

    def field(self, key: str) -> Field:
        (number,) = self.unpack("<I")
        if number == STRING:
            return Field(key, "str", self.string())
        if number != ARRAY:
            kind, code = self.scalar(number, key)
            return Field(key, kind, self.unpack(code)[0])
        element, count = self.unpack("<IQ")
        if element == STRING:
            self.check_count(count, 8, f"strings in {key}")
            return Field(key, "[str]", [self.string() for _ in range(count)])
        kind, code = self.scalar(element, key)
        self.check_count(count, struct.calcsize(code), f"elements in {key}")
        return Field(key, f"[{kind}]", list(self.unpack(f"<{count}{code[1]}")))

    def scalar(self, number: int, key: str) -> tuple[str, str]:
        """The kind of value type `number`, and its struct format."""
        if number not in _SCALARS:
            raise self.error(f"{key} has the unknown value type {number}")
        return _SCALARS[number]

    def tensor(self, alignment: int) -> GGUFTensor:
        name = self.string()
        (dimensions,) = self.unpack("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(f"tensor {name!r} has {dimensions} dimensions; 1 to 4 are allowed")
        sizes = self.unpack(f"<{dimensions}Q")
        number, offset = self.unpack("<IQ")
        if number not in _TYPE_NAMES:
            raise self.error(f"tensor {name!r} has the unknown ggml type {number}")
        kind = GGML_TYPES[_TYPE_NAMES[number]]
        if sizes[0] % kind.block:
            raise self.error(
                f"tensor {name!r}: {sizes[0]} columns do not divide into blocks of {kind.block}"
            )
        if offset % alignment:
            raise self.error(f"tensor {name!r}: offset {offset} is not a multiple of {alignment}")
        return GGUFTensor(name, _TYPE_NAMES[number], tuple(reversed(sizes)), offset)

    def place(self, tensors: Sequence[GGUFTensor], data_offset: int) -> Iterator[GGUFTensor]:
        """Tensors with offsets from the file's start; each must lie in the file, on its own."""
        end = 0
        for tensor in sorted(tensors, key=lambda t: (t.offset, t.size_bytes)):
            if tensor.offset < end:
                raise self.error(f"tensor {tensor.name!r} overlaps the one before it")
            end = tensor.offset + tensor.size_bytes
            if data_offset + end > len(self.data):
                raise self.error(
                    f"truncated: tensor {tensor.name!r} ends at byte {data_offset + end}, the file"
                    f" has {len(self.data)}"
                )
        for tensor in tensors:
            yield replace(tensor, offset=data_offset + tensor.offset)
