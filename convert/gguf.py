"""The GGUF container (version 3, little endian): header out, header in.

    magic "GGUF" | u32 version | u64 tensors | u64 fields
    fields: key, u32 type, value ...        (a string is u64 length + UTF-8; an array u32 element
                                             type + u64 count + elements)
    tensors: name, u32 dims, u64 size each (fastest first: columns, rows, experts), u32 ggml type,
             u64 offset from the start of the data
    padding to the alignment, then the data, each tensor padded to the alignment

Block sizes are ggml's (`ggml-common.h`, MIT): bytes written as their parts. The reader believes no
count, length or offset before it is held against the file's size, so a hostile header ends in a
CheckpointError, in time and memory proportional to the file. Quantized values are not read here.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from convert.errors import CheckpointError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A ggml type: its number in files, values per block, bytes per block."""

    number: int
    block: int
    block_bytes: int


GGML_TYPES = {
    "F32": GGMLType(0, 1, 4),
    "F16": GGMLType(1, 1, 2),
    "Q4_0": GGMLType(2, 32, 2 + 16),
    "Q4_1": GGMLType(3, 32, 2 + 2 + 16),
    "Q5_0": GGMLType(6, 32, 2 + 4 + 16),
    "Q5_1": GGMLType(7, 32, 2 + 2 + 4 + 16),
    "Q8_0": GGMLType(8, 32, 2 + 32),
    "Q2_K": GGMLType(10, 256, 16 + 64 + 2 + 2),
    "Q3_K": GGMLType(11, 256, 32 + 64 + 12 + 2),
    "Q4_K": GGMLType(12, 256, 2 + 2 + 12 + 128),
    "Q5_K": GGMLType(13, 256, 2 + 2 + 12 + 32 + 128),
    "Q6_K": GGMLType(14, 256, 128 + 64 + 16 + 2),
    "IQ2_XXS": GGMLType(16, 256, 2 + 64),
    "IQ2_XS": GGMLType(17, 256, 2 + 64 + 8),
    "IQ3_XXS": GGMLType(18, 256, 2 + 64 + 32),
    "IQ1_S": GGMLType(19, 256, 2 + 32 + 16),
    "IQ4_NL": GGMLType(20, 32, 2 + 16),
    "IQ3_S": GGMLType(21, 256, 2 + 64 + 8 + 32 + 4),
    "IQ2_S": GGMLType(22, 256, 2 + 64 + 8 + 8),
    "IQ4_XS": GGMLType(23, 256, 2 + 2 + 4 + 128),
    "I8": GGMLType(24, 1, 1),
    "I16": GGMLType(25, 1, 2),
    "I32": GGMLType(26, 1, 4),
    "I64": GGMLType(27, 1, 8),
    "F64": GGMLType(28, 1, 8),
    "IQ1_M": GGMLType(29, 256, 32 + 16 + 8),
    "BF16": GGMLType(30, 1, 2),
    "TQ1_0": GGMLType(34, 256, 48 + 4 + 2),
    "TQ2_0": GGMLType(35, 256, 64 + 2),
    "MXFP4": GGMLType(39, 32, 1 + 16),
}
_TYPE_NAMES = {kind.number: name for name, kind in GGML_TYPES.items()}

_SCALARS = {
    "u8": (0, "<B"),
    "i8": (1, "<b"),
    "u16": (2, "<H"),
    "i16": (3, "<h"),
    "u32": (4, "<I"),
    "i32": (5, "<i"),
    "f32": (6, "<f"),
    "bool": (7, "<?"),
    "u64": (10, "<Q"),
    "i64": (11, "<q"),
    "f64": (12, "<d"),
}
_SCALAR_FORMATS = dict(_SCALARS.values())
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Field:
    """A key and its typed value; `kind` is `u32`, `str`, ... or `[u32]`, `[str]` for an array."""

    key: str
    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor in a GGUF file; `shape` is row-major, `offset` counts from the file's start."""

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding."""
        kind = GGML_TYPES[self.ggml_type]
        return math.prod(self.shape) // kind.block * kind.block_bytes


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """A parsed header: fields by key in file order, tensors by name in file order."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    data_offset: int

    def read(self, name: str) -> bytes:
        """The stored bytes of one tensor."""
        tensor = self.tensors[name]
        with self.path.open("rb") as stream:
            stream.seek(tensor.offset)
            return stream.read(tensor.size_bytes)


def pad(size: int, alignment: int = ALIGNMENT) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // alignment) * alignment


def encode_header(fields: Sequence[Field], tensors: Sequence[GGUFTensor]) -> bytes:
    """The bytes before the data, padded; tensor offsets must count from the data's start."""
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(fields)))
    for field in fields:
        out += _string(field.key) + _encode_value(field)
    for tensor in tensors:
        out += _string(tensor.name) + struct.pack("<I", len(tensor.shape))
        out += struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        out += struct.pack("<IQ", GGML_TYPES[tensor.ggml_type].number, tensor.offset)
    return bytes(out) + b"\0" * (pad(len(out)) - len(out))


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(encoded)) + encoded


@lru_cache(maxsize=4)
def _strings(texts: tuple[str, ...]) -> bytes:
    """Texts one after the other; kept, because one vocabulary goes into many headers."""
    return b"".join(map(_string, texts))


def _encode_value(field: Field) -> bytes:
    if field.kind == "str":
        return struct.pack("<I", _STRING) + _string(field.value)
    if not field.kind.startswith("["):
        number, code = _SCALARS[field.kind]
        return struct.pack("<I", number) + struct.pack(code, field.value)
    kind = field.kind.strip("[]")
    number = _STRING if kind == "str" else _SCALARS[kind][0]
    head = struct.pack("<IIQ", _ARRAY, number, len(field.value))
    if kind == "str":
        return head + _strings(tuple(field.value))
    return head + struct.pack(f"<{len(field.value)}{_SCALARS[kind][1][1]}", *field.value)


def read_gguf(path: Path) -> GGUFFile:
    """Read and check the header of a GGUF file; raises CheckpointError on anything inconsistent."""
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
    """`read_gguf` for a file that is not on disk; `path` is what messages call it."""
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
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            key = self.string()
            if key in fields:
                raise self.error(f"key {key!r} occurs twice")
            fields[key] = self.value(key)
        alignment = fields.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.error(f"general.alignment is {alignment!r}; expected a power of two")
        found = [self.tensor(alignment) for _ in range(tensor_count)]
        data_offset = pad(self.at, alignment)
        tensors = {t.name: t for t in self.place(found, data_offset)}
        if len(tensors) != len(found):
            raise self.error("two tensors have the same name")
        return GGUFFile(self.path, fields, tensors, data_offset)

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

    def value(self, key: str) -> Any:
        (kind,) = self.unpack("<I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.unpack(self.scalar_format(kind, key))[0]
        element, count = self.unpack("<IQ")
        if element == _STRING:
            self.check_count(count, 8, f"strings in {key}")
            return [self.string() for _ in range(count)]
        code = self.scalar_format(element, key)
        self.check_count(count, struct.calcsize(code), f"elements in {key}")
        return list(self.unpack(f"<{count}{code[1]}"))

    def scalar_format(self, kind: int, key: str) -> str:
        if kind not in _SCALAR_FORMATS:
            raise self.error(f"{key} has the unknown value type {kind}")
        return _SCALAR_FORMATS[kind]

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
            yield GGUFTensor(
                tensor.name, tensor.ggml_type, tensor.shape, data_offset + tensor.offset
            )
