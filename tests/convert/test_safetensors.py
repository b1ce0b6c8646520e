"""The safetensors layout is the library's own, and a header that lies is told so."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from convert.errors import CheckpointError
from convert.safetensors import Layout, StoredTensor, layout, read_header
from convert.tensor import DTYPES, TensorInfo

TORCH_DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name != "__metadata__"
)
tensor_sets = st.dictionaries(
    names,
    st.tuples(st.sampled_from(list(TORCH_DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
    max_size=8,
)


def torch_tensor(dtype: str, shape: list[int], seed: int) -> torch.Tensor:
    """Random bytes as a tensor of any dtype."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape) * DTYPES[dtype].itemsize
    raw = torch.randint(0, 2 if dtype == "BOOL" else 256, (size,), generator=generator)
    return raw.to(torch.uint8).view(TORCH_DTYPES[dtype]).reshape(shape)


def test_every_dtype_is_known_to_both() -> None:
    assert TORCH_DTYPES.keys() == DTYPES.keys()
    for name, dtype in TORCH_DTYPES.items():
        assert torch.empty(1, dtype=dtype).element_size() == DTYPES[name].itemsize


@settings(max_examples=200, deadline=None)
@given(tensor_sets, st.randoms(use_true_random=False))
def test_layout_is_the_library_s_byte_for_byte(chosen: dict[str, Any], random: Any) -> None:
    tensors = {n: torch_tensor(*of, seed=i) for i, (n, of) in enumerate(chosen.items())}
    order = list(chosen)
    random.shuffle(order)
    placed = layout([StoredTensor(n, chosen[n][0], tuple(chosen[n][1])) for n in order])
    assert file_bytes(placed, tensors) == save(tensors)


def file_bytes(placed: Layout, tensors: dict[str, torch.Tensor]) -> bytes:
    out = bytearray(placed.header.ljust(placed.size_bytes, b"\xee"))
    for name, tensor in tensors.items():
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        out[placed.offsets[name] : placed.offsets[name] + len(data)] = data
    return bytes(out)


def test_all_dtypes_in_one_file() -> None:
    tensors = {f"{i % 3}{d}": torch_tensor(d, [2, 3], i) for i, d in enumerate(TORCH_DTYPES)}
    stored = [StoredTensor(n, n[1:], (2, 3)) for n in tensors]
    assert file_bytes(layout(stored), tensors) == save(tensors)


def test_a_header_reads_back_with_offsets_from_the_file_s_start(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    save_file({"b": weight, "a": torch.ones(4, dtype=torch.bfloat16)}, path, {"format": "pt"})
    infos = {info.name: info for info in read_header(path, "x")}
    data = path.read_bytes()
    b = infos["b"]
    assert (b.dtype, b.shape, b.file, b.rows, b.columns) == ("F32", (2, 3), "x", 2, 3)
    assert data[b.offset : b.offset + b.size_bytes] == weight.numpy().tobytes()
    a = infos["a"]
    assert (a.rows, a.columns, a.row_bytes) == (1, 4, 8)
    assert data[a.offset : a.offset + 2] == b"\x80\x3f"


def write(path: Path, header: object, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":1e999999, "b":' + b"9" * 5000 + b"}", "not JSON"),
        ([], "a JSON list, not an object"),
        (b'{"a":1,"a":2}', "names a tensor twice"),
        ({"a": 1}, "expected dtype, shape and data_offsets"),
        ({"a": {"dtype": "F32"}}, "expected dtype, shape and data_offsets"),
        ({"a": entry(dtype="F12")}, "unknown dtype 'F12'"),
        ({"a": entry(dtype=["F32"])}, "unknown dtype"),
        ({"a": entry(dtype={})}, "unknown dtype"),
        ({"a": entry(shape=6)}, "malformed"),
        ({"a": entry(shape=[2.0, 3])}, "malformed"),
        ({"a": entry(shape=[True, 6])}, "malformed"),
        ({"a": entry(shape=[-2, -3])}, "malformed"),
        ({"a": entry(shape=[2**62, 3])}, "malformed"),
        ({"a": entry(shape=[2**61] * 1_000_000)}, "1000000 dimensions"),
        ({"a": entry(data_offsets=[0, 24, 48])}, "malformed"),
        ({"a": entry(data_offsets=[24, 0])}, "-24 bytes in the header"),
        ({"a": entry(shape=[2, 4])}, r"24 bytes in the header, but F32 \[2, 4\] takes 32"),
        ({"a": entry(shape=[2**40, 2**40])}, "24 bytes in the header"),
        ({"a": entry(shape=[2**40, 0, 2**40], data_offsets=[0, 0])}, "holds nothing"),
        ({"a": entry(data_offsets=[4, 28])}, "leaves a hole at byte"),
        ({"a": entry(), "b": entry()}, "overlaps the tensor before it"),
        ({"a": entry(shape=[2, 2], data_offsets=[0, 16])}, "longer than its header says"),
        ({"a": entry(), "b": entry(data_offsets=[24, 48])}, "truncated: .* by the header"),
        ({"a": entry(data_offsets=[2**61, 2**61 + 24])}, "leaves a hole"),
    ],
)
def test_a_header_that_lies(tmp_path: Path, header: object, complaint: str) -> None:
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors: .*{complaint}"):
        read_header(path, "x")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "truncated or not"),
        (b"\x08\0\0\0", "truncated or not"),
        (bytes(8), "not JSON"),
        (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes in a file of 10"),
    ],
)
def test_a_file_without_a_header(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_header(path, "x")


def test_a_header_larger_than_the_format_allows_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as stream:
        stream.write((100_000_001).to_bytes(8, "little"))
        stream.truncate(200_000_000)  # sparse
    with pytest.raises(CheckpointError, match="the format allows 100000000"):
        read_header(path, "x")


SAMPLE = save(
    {
        "model.embed_tokens.weight": torch.ones(4, 8, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(8),
        "lm_head.weight": torch.ones(4, 8, dtype=torch.bfloat16),
    },
    {"format": "pt"},
)
HEADER = 8 + int.from_bytes(SAMPLE[:8], "little")
edits = st.lists(
    st.tuples(
        st.sampled_from(("flip", "byte", "cut", "insert", "number", "length")),
        st.integers(0, HEADER - 1),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def damaged(changes: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(SAMPLE)
    for kind, at, value in changes:
        place = at % max(len(data), 1)
        match kind:
            case "flip" if data:
                data[place] ^= 1 << value[0] % 8
            case "byte" if data:
                data[place] = value[0]
            case "cut":
                del data[place : place + value[0] % 8]
            case "insert":
                data[place:place] = value
            case "number":  # any digit becomes another: offsets, shapes and lengths stay plausible
                digits = [i for i, b in enumerate(data[:HEADER]) if 48 <= b < 58]
                data[digits[at % len(digits)] if digits else 0] = 48 + value[0] % 10
            case "length":
                data[:8] = int.from_bytes(value, "little").to_bytes(8, "little")
    return bytes(data)


@settings(max_examples=1500, deadline=None)
@given(edits)
def test_a_damaged_header_is_refused_or_read_as_the_library_reads_it(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, int, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged(changes))
    try:
        infos = read_header(path, "x")
    except CheckpointError:
        return
    check_against_library(path, infos)


def check_against_library(path: Path, infos: list[TensorInfo]) -> None:
    """What we accept lies inside the file, without overlap, and is what the library sees."""
    ranges = sorted((info.offset, info.offset + info.size_bytes) for info in infos)
    assert all(end <= begin for (_, end), (begin, _) in pairwise(ranges))
    assert not ranges or ranges[-1][1] == path.stat().st_size
    try:
        with safetensors.safe_open(path, "pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError:
        return  # the library is stricter about metadata and unknown keys
    assert {info.name: info.shape for info in infos} == theirs
