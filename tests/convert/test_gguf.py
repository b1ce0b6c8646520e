"""GGUF headers: read back by gguf's own reader, and never believed before they are checked."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.errors import CheckpointError
from convert.gguf import GGML_TYPES, MAGIC, Field, GGUFTensor, encode_header, pad
from convert.gguf_reader import GGUFFile, read_gguf

KINDS = {
    "u8": st.integers(0, 2**8 - 1),
    "i8": st.integers(-(2**7), 2**7 - 1),
    "u16": st.integers(0, 2**16 - 1),
    "i16": st.integers(-(2**15), 2**15 - 1),
    "u32": st.integers(0, 2**32 - 1),
    "i32": st.integers(-(2**31), 2**31 - 1),
    "f32": st.floats(width=32, allow_nan=False),
    "bool": st.booleans(),
    "u64": st.integers(0, 2**64 - 1),
    "i64": st.integers(-(2**63), 2**63 - 1),
    "f64": st.floats(allow_nan=False),
    "str": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
}


@st.composite
def some_fields(draw: st.DrawFn) -> list[Field]:
    keys = draw(st.lists(st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,8}", fullmatch=True), unique=True))
    fields = []
    for key in keys:
        kind = draw(st.sampled_from(list(KINDS)))
        if draw(st.booleans()):
            fields.append(Field(key, kind, draw(KINDS[kind])))
        else:
            values = draw(st.lists(KINDS[kind], min_size=1, max_size=4))
            fields.append(Field(key, f"[{kind}]", values))
    return fields


@st.composite
def some_tensors(draw: st.DrawFn) -> list[GGUFTensor]:
    names = draw(st.lists(st.text("abc.", min_size=1, max_size=8), max_size=4, unique=True))
    tensors, offset = [], 0
    for name in names:
        ggml_type = draw(st.sampled_from([n for n in GGML_TYPES if n[:2] != "IQ"]))
        kind = GGML_TYPES[ggml_type]
        rows = draw(st.lists(st.integers(1, 3), max_size=2))
        shape = (*rows, kind.block * draw(st.integers(1, 2)))
        tensors.append(GGUFTensor(name, ggml_type, shape, offset))
        offset += pad(tensors[-1].size_bytes)
    return tensors


def write(path: Path, fields: list[Field], tensors: list[GGUFTensor]) -> Path:
    size = sum(pad(tensor.size_bytes) for tensor in tensors)
    data = np.random.default_rng(0).bytes(size)
    path.write_bytes(encode_header(fields, tensors) + data)
    return path


def test_block_sizes_are_gguf_s_own() -> None:
    for name, kind in GGML_TYPES.items():
        theirs = gguf.GGMLQuantizationType[name]
        assert (kind.number, kind.block, kind.block_bytes) == (
            theirs.value,
            *gguf.GGML_QUANT_SIZES[theirs],
        )


@settings(max_examples=60, deadline=None)
@given(some_fields(), some_tensors())
def test_round_trip_against_gguf_s_reader(
    tmp_path_factory: pytest.TempPathFactory, fields: list[Field], tensors: list[GGUFTensor]
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "m.gguf", fields, tensors)
    ours = read_gguf(path)
    theirs = gguf.GGUFReader(path)
    for field in fields:
        expected = list(field.value) if field.kind[0] == "[" else field.value
        assert ours.fields[field.key] == expected
        found = theirs.fields[field.key].contents()
        assert found == expected or math.isclose(found, expected, rel_tol=1e-6)
    assert list(ours.fields) == [field.key for field in fields]
    assert list(ours.tensors) == [tensor.name for tensor in tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.ggml_type == tensor.tensor_type.name
        assert list(mine.shape) == [int(size) for size in reversed(tensor.shape)]
        assert (mine.offset, mine.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert ours.read(tensor.name) == tensor.data.tobytes()


def test_a_file_of_gguf_s_own_writer(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "\u00fc")
    writer.add_array("a.list", ["x", "", "\U0001f999"])
    writer.add_float32("a.f", 0.5)
    writer.add_custom_alignment(64)
    weight = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("w", weight)
    quantized = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    file = read_gguf(path)
    assert file.fields["general.name"] == "\u00fc"
    assert file.fields["a.list"] == ["x", "", "\U0001f999"]
    assert file.fields["a.f"] == 0.5
    assert all(tensor.offset % 64 == 0 for tensor in file.tensors.values())
    assert file.read("w") == weight.tobytes()
    assert file.tensors["q"] == GGUFTensor("q", "Q8_0", (3, 32), file.tensors["q"].offset)
    assert file.read("q") == quantized.tobytes()


FIELDS = [
    Field("general.architecture", "str", "llama"),
    Field("llama.block_count", "u32", 2),
    Field("tokenizer.ggml.tokens", "[str]", ["a", "b", "c"]),
    Field("tokenizer.ggml.token_type", "[i32]", [1, 1, 3]),
]
TENSORS = [
    GGUFTensor("token_embd.weight", "BF16", (4, 32), 0),
    GGUFTensor("output.weight", "Q8_0", (4, 32), 256),
]
HEADER = encode_header(FIELDS, TENSORS)
SAMPLE = HEADER + bytes(256 + 160)


def read(tmp_path: Path, data: bytes) -> GGUFFile:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def patched(at: int, code: str, value: Any) -> bytes:
    data = bytearray(SAMPLE)
    struct.pack_into(code, data, at, value)
    return bytes(data)


EMBD = SAMPLE.index(b"token_embd.weight") + len("token_embd.weight")  # its n_dims
HEAD = SAMPLE.index(b"output.weight") + len("output.weight")
TOKENS = SAMPLE.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a GGUF file"),
        (b"GGU", "not a GGUF file"),
        (b"GGUF", "inside a value"),
        (b"GGML" + SAMPLE[4:], "not a GGUF file"),
        (SAMPLE[:30], "inside a value|claims"),
        (SAMPLE[:-25], "truncated: tensor 'output.weight'"),
        (patched(4, "<I", 1), "version 1"),
        (patched(4, ">I", 3), "version 50331648"),
        (patched(8, "<Q", 2**64 - 1), "claims 18446744073709551615 tensors"),
        (patched(16, "<Q", 2**40), "claims 1099511627776 fields"),
        (patched(24, "<Q", 2**63), "bytes of text"),
        (patched(32, "<B", 0xFF), "not UTF-8"),
        (patched(TOKENS, "<I", 77), "unknown value type 77"),
        (patched(TOKENS + 4, "<I", 9), "unknown value type 9"),  # arrays of arrays
        (patched(TOKENS + 8, "<Q", 2**50), "claims 1125899906842624 strings"),
        (patched(EMBD, "<I", 0), "has 0 dimensions"),
        (patched(EMBD, "<I", 5), "has 5 dimensions"),
        (patched(EMBD + 4, "<Q", 2**63), "truncated: tensor 'token_embd.weight'|overlaps"),
        (patched(EMBD + 20, "<I", 31), "unknown ggml type 31"),
        (patched(EMBD + 20, "<I", 12), "32 columns do not divide into blocks of 256"),
        (patched(EMBD + 24, "<Q", 7), "offset 7 is not a multiple of 32"),
        (patched(HEAD + 24, "<Q", 224), "overlaps the one before"),
        (patched(HEAD + 24, "<Q", 2**63), "truncated"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, data: bytes, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=rf"m\.gguf: .*({complaint})"):
        read(tmp_path, data)


def test_the_padding_after_the_last_tensor_may_be_missing(tmp_path: Path) -> None:
    assert len(read(tmp_path, SAMPLE[:-24]).read("output.weight")) == 4 * 34


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_an_alignment_that_cannot_be(tmp_path: Path, alignment: int) -> None:
    header = encode_header([Field("general.alignment", "u32", alignment)], TENSORS)
    with pytest.raises(CheckpointError, match=r"power of two|truncated|multiple"):
        read(tmp_path, header + bytes(416))


@pytest.mark.parametrize("what", ["key", "tensor"])
def test_a_name_that_occurs_twice(tmp_path: Path, what: str) -> None:
    fields = FIELDS + (FIELDS[:1] if what == "key" else [])
    twice = [TENSORS[0], GGUFTensor("token_embd.weight", "BF16", (4, 32), 256)]
    header = encode_header(fields, twice if what == "tensor" else TENSORS)
    with pytest.raises(CheckpointError, match=r"twice|same name"):
        read(tmp_path, header + bytes(512))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_gguf(path)


edits = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "u32", "u64", "end")),
        st.integers(0, len(HEADER) - 1),
        st.one_of(st.integers(0, 80), st.integers(0, 2**64 - 1)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=1500, deadline=None)
@given(edits)
def test_a_damaged_header_is_refused_or_consistent(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, int]]
) -> None:
    data = bytearray(SAMPLE)
    for kind, at, value in changes:
        match kind:
            case "flip" if at < len(data):
                data[at] ^= 1 << value % 8
            case "cut":
                del data[at : at + value % 8]
            case "insert":
                data[at:at] = (value & 0xFFFF).to_bytes(2, "little")
            case "u32":
                data[at : at + 4] = (value % 2**32).to_bytes(4, "little")
            case "u64":
                data[at : at + 8] = value.to_bytes(8, "little")
            case "end":
                del data[at:]
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(data)
    try:
        file = read_gguf(path)
    except CheckpointError:
        return
    for tensor in file.tensors.values():
        assert tensor.offset > len(MAGIC)
        assert tensor.offset + tensor.size_bytes <= len(data)
        assert len(file.read(tensor.name)) == tensor.size_bytes
