"""The importance matrix (imatrix): how much each column of a weight matters, from activations.

A file holds, for each matrix and input column, the sum over tokens of squared activations, and the
number of tokens; quantizers take the mean. Two forms are read. GGUF (llama.cpp since PR 9400):
`general.type` "imatrix", tensors `<name>.in_sum2` F32 (matrices, columns) and `<name>.counts` F32
(matrices, 1); a matrix nobody used gets weights of 1. Legacy `.dat`: i32 entries; each i32 length,
name, i32 calls, i32 values, f32 values (sums of means over calls); then i32 chunks, i32 length,
data set. A stacked expert tensor has one row of weights for each expert.

The file is known by its sha256, never by its path. `importance_for` refuses one of another
model. `encode_importance` makes the GGUF form, entries sorted by name as llama-imatrix has them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.errors import InputError
from convert.gguf import MAGIC, Field, GGUFTensor, encode_header, pad
from convert.gguf_plan import GGUFOutput
from convert.gguf_reader import GGUFFile, read_gguf
from convert.output_tensor import Importance
from convert.tensor import Float32

_SUMS, _COUNTS = ".in_sum2", ".counts"
_REQUIRED_FIELDS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")


@dataclass(frozen=True, slots=True)
class ImportanceFile:
    """Means by GGUF tensor name, each (matrices, columns) float32, and the file's sha256.

    `chunks` is over how many chunks of text it was made, where the file says it.
    """

    name: str
    sha256: str
    means: Mapping[str, Float32]
    chunks: int | None = None

    def of(self, tensor: str) -> Importance | None:
        """The importance of one tensor, if the file has it."""
        values = self.means.get(tensor)
        return None if values is None else Importance(f"{self.sha256}:{tensor}", values)


def read_importance(path: Path) -> ImportanceFile:
    """Read either form; InputError names the file and the entry that is wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    is_gguf = data[:4] == MAGIC
    means, chunks = _read_gguf_form(read_gguf(path)) if is_gguf else _read_legacy(path, data)
    if not means:
        raise InputError(f"{path}: holds no entries; not an imatrix")
    for name, values in means.items():
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} has values that are not finite")
    return ImportanceFile(path.name, hashlib.sha256(data).hexdigest(), means, chunks)


def _read_gguf_form(file: GGUFFile) -> tuple[dict[str, Float32], int | None]:
    missing = [key for key in _REQUIRED_FIELDS if key not in file.fields]
    if missing:
        raise InputError(f"{file.path}: not an imatrix: {', '.join(missing)} missing")
    means = {}
    for name in file.tensors:
        if not name.endswith(_SUMS):
            continue
        stem = name.removesuffix(_SUMS)
        if stem + _COUNTS not in file.tensors:
            raise InputError(f"{file.path}: {stem} has sums but no counts")
        sums, counts = _floats(file, name), _floats(file, stem + _COUNTS)
        if len(sums) != counts.size:
            raise InputError(f"{file.path}: {stem}: {len(sums)} rows of sums, {counts.size} counts")
        counts = counts.reshape(-1, 1)
        used = counts > 0
        divided = np.divide(sums, counts, out=np.ones_like(sums), where=used)
        means[stem] = np.ascontiguousarray(divided)
    chunks = file.fields["imatrix.chunk_count"]
    return means, chunks if isinstance(chunks, int) else None


def _floats(file: GGUFFile, name: str) -> Float32:
    tensor = file.tensors[name]
    if tensor.ggml_type != "F32":
        raise InputError(f"{file.path}: {name} is {tensor.ggml_type}, expected F32")
    if not tensor.size_bytes:
        raise InputError(f"{file.path}: {name} is empty; expected a value for every column")
    return np.frombuffer(file.read(name), dtype="<f4").reshape(-1, tensor.shape[-1])


def encode_importance(
    sums: Mapping[str, NDArray[np.float64]],
    counts: Mapping[str, NDArray[np.float64]],
    *,
    dataset: str,
    chunks: int,
    chunk_tokens: int,
) -> bytes:
    """The GGUF form of sums (matrices, columns) and counts (matrices,), by tensor name.

    `dataset` is published with whatever is made from the file: a name, never a path.
    """
    tensors, data, offset = [], [], 0
    for name in sorted(sums):
        for suffix, values in ((_SUMS, sums[name]), (_COUNTS, counts[name].reshape(-1, 1))):
            tensors.append(GGUFTensor(name + suffix, "F32", values.shape, offset))
            raw = values.astype("<f4").tobytes()
            data.append(raw + b"\0" * (pad(len(raw)) - len(raw)))
            offset += len(data[-1])
    fields = [
        Field("general.type", "str", "imatrix"),
        Field("imatrix.datasets", "[str]", [dataset]),
        Field("imatrix.chunk_count", "u32", chunks),
        Field("imatrix.chunk_size", "u32", chunk_tokens),
    ]
    return encode_header(fields, tensors) + b"".join(data)


def _read_legacy(path: Path, data: bytes) -> tuple[dict[str, Float32], int | None]:
    """The old form; every length is held against the file before it is used."""
    at = 0

    def integer(limit: int) -> int:
        nonlocal at
        if at + 4 > len(data):
            raise InputError(f"{path}: not an imatrix, or cut at byte {at}")
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        if not 0 <= value <= limit:
            raise InputError(f"{path}: not an imatrix: the number {value} at byte {at - 4}")
        return int(value)

    means: dict[str, Float32] = {}
    for _ in range(integer(len(data) // 12)):
        length = integer(len(data) - at)
        name = data[at : at + length].decode("utf-8", "replace")
        at += length
        calls = integer(2**31 - 1)
        count = integer((len(data) - at) // 4)
        values = np.frombuffer(data, dtype="<f4", count=count, offset=at)
        at += 4 * count
        mean = values / np.float32(calls or 1)
        means[name] = mean.astype(np.float32).reshape(1, -1)
    chunks = struct.unpack_from("<i", data, at)[0] if at + 4 <= len(data) else 0
    return means, chunks if chunks > 0 else None


def importance_for(file: ImportanceFile, outputs: Sequence[GGUFOutput]) -> dict[str, Importance]:
    """Importance by tensor name, reshaped to one row an expert; refuses a file of another model.

    As llama-quantize does: a tensor without an entry goes without, an entry of the wrong size is
    an error (for the embedding it is ignored).
    """
    found = {}
    for output in outputs:
        tensor = output.tensor
        entry = file.of(tensor.name) if output.is_matrix else None
        if entry is None:
            continue
        matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
        expected = matrices * tensor.shape[-1]
        if entry.values.size != expected:
            if output.role == "token_embd":
                continue
            raise InputError(
                f"{file.name}: {tensor.name} has {entry.values.size} weights, the model needs"
                f" {expected}; it was made from another model"
            )
        found[tensor.name] = Importance(entry.digest, entry.values.reshape(matrices, -1))
    layers = [output for output in outputs if output.is_matrix and output.layer is not None]
    if not any(output.tensor.name in found for output in layers):
        raise InputError(f"{file.name}: has no entry for any of this model's tensors")
    return found
