"""The GGUF container (version 3, little endian): its types, and headers to be written.

    magic "GGUF" | u32 version | u64 tensors | u64 fields
    fields: key, u32 type, value ...        (a string is u64 length + UTF-8; an array u32 element
                                             type + u64 count + elements)
    tensors: name, u32 dims, u64 size each (fastest first: columns, rows, experts), u32 ggml type,
             u64 offset from the start of the data
    padding to the alignment, then the data, each tensor padded to the alignment

Block sizes are ggml's (`ggml-common.h`, MIT): bytes written as their parts. Headers are read by
`gguf_reader.py`. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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

SCALARS = {
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
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Field:
    """A key and its typed value; `kind` is `u32`, `str`, ... or `[u32]`, `[str]` for an array."""

    key: str
    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor in a GGUF file; `shape` is row-major, `offset` counts from the file's start.

    `part` is the number, from 0, of the file that holds it, where a model is split over several.
    """

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    offset: int
    part: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of its data, without padding."""
        kind = GGML_TYPES[self.ggml_type]
        return math.prod(self.shape) // kind.block * kind.block_bytes


SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
"""The name of a file of a split model: stem, number from 1, count."""


def split_name(stem: str, index: int, count: int) -> str:
    """The name of file `index` (from 0) of a split model, as llama-gguf-split writes it."""
    return f"{stem}-{index + 1:05d}-of-{count:05d}.gguf"


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
        return struct.pack("<I", STRING) + _string(field.value)
    if not field.kind.startswith("["):
        number, code = SCALARS[field.kind]
        return struct.pack("<I", number) + struct.pack(code, field.value)
    kind = field.kind.strip("[]")
    number = STRING if kind == "str" else SCALARS[kind][0]
    head = struct.pack("<IIQ", ARRAY, number, len(field.value))
    if kind == "str":
        return head + _strings(tuple(field.value))
    return head + struct.pack(f"<{len(field.value)}{SCALARS[kind][1][1]}", *field.value)
