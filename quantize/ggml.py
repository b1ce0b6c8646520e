"""ggml's own quantizers, called through ctypes: the reference for every GGUF byte.

`libggml-base` lies inside the llama-cpp-python package; importing that package would load all of
llama.cpp, so only the library is opened. Three functions are used (`ggml.h`, MIT):

    size_t ggml_quantize_chunk(type, const float *src, void *dst, int64 start, int64 rows,
                               int64 columns, const float *importance)
    void   ggml_quantize_init(type)                  builds tables, once
    bool   ggml_validate_row_data(type, const void *, size_t)

Rows are independent of each other, so blocks may be of any height. The library is compiled without
CPU flags, so on x86-64 its bits are plain IEEE single precision; on other machines a compiler may
fuse multiplications and the bits differ, which is why the numerics profile names the library by its
sha256. Some types abort the process without importance; the planner refuses them before.

Where `quantize/kernels` has a type, it makes the blocks: the same bytes, faster. Before its first
use on a dtype it is tried on a few thousand values against the library that is installed; should
a byte differ (another release of the library, a faulty compiler), the library is used and a warning
says so. Therefore the profile names the library whichever made the bytes, on any processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.errors import TensorError, UnsupportedError
from convert.gguf import GGML_TYPES
from convert.output_tensor import Encoded, Importance, Part
from convert.tensor import SOURCE_DTYPES, Block, Float32, round_to, to_float32
from quantize import kernels

ABORTS_WITHOUT_IMPORTANCE = ("IQ2_XXS", "IQ2_XS", "IQ1_S")
"""Types whose quantizer ends the process when it is given none (`ggml.c`)."""
_LIBRARY_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


@cache
def library_path() -> Path:
    """Where llama-cpp-python keeps libggml-base."""
    spec = importlib.util.find_spec("llama_cpp")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for name in _LIBRARY_NAMES:
            path = Path(folder) / "lib" / name
            if path.is_file():
                return path
    raise UnsupportedError("libggml-base was not found; install llama-cpp-python 0.3.36 or newer")


@cache
def library_digest() -> str:
    """sha256 of libggml-base: which quantizer made the bits."""
    return hashlib.sha256(library_path().read_bytes()).hexdigest()


@cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    return library


@cache
def _quantizer(name: str, path: Path) -> ctypes.CDLL:
    """The library, with the tables of one type built; they take seconds for some IQ types."""
    _library(path).ggml_quantize_init(GGML_TYPES[name].number)
    return _library(path)


def quantize_chunk(
    name: str, values: Float32, importance: Float32 | None, library: Path | None = None
) -> NDArray[np.uint8]:
    """(rows, columns) float32 -> (rows, row bytes) by a library; importance is per column.

    `library` is another libggml-base than the installed one.
    """
    kind, values = GGML_TYPES[name], np.ascontiguousarray(values)
    rows, columns = values.shape
    out = np.empty((rows, columns // kind.block * kind.block_bytes), dtype=np.uint8)
    weights = None if importance is None else importance.ctypes.data
    place = values.ctypes.data, out.ctypes.data
    chunk = _quantizer(name, library or library_path()).ggml_quantize_chunk
    written = chunk(kind.number, *place, 0, rows, columns, weights)
    assert written == out.nbytes, (written, out.nbytes)
    return out


@cache
def kernel_build(name: str, dtype: str) -> str | None:
    """The build of our kernels that makes the library's bytes of this type; None if none does.

    `dtype` is what they would read: a kernel widens by itself.
    """
    build = kernels.build()
    if build is None or name not in kernels.TYPES or dtype not in SOURCE_DTYPES:
        return None
    random = np.random.default_rng(0)
    values = random.standard_t(3, (9, 768)).astype(np.float32)
    values[::3] *= np.geomspace(1e-6, 1e3, 768, dtype=np.float32)
    raw = round_to(values, dtype)
    wide = to_float32(raw, dtype)
    for importance in (None, random.chisquare(1, 768).astype(np.float32)):
        ours = kernels.quantize(build, raw, dtype, name, importance)
        if not np.array_equal(ours, quantize_chunk(name, wide, importance)):
            warnings.warn(
                f"the {build} kernel for {name} from {dtype} differs from the installed"
                " libggml-base, which is used instead",
                stacklevel=2,
            )
            return None
    return build


@dataclass(frozen=True, slots=True)
class Ggml:
    """Values as blocks of the ggml type `name`, with the bytes of libggml-base."""

    name: str
    block_rows: int = 1
    needs_reduce: bool = False

    @property
    def numerics(self) -> str:
        """The library that makes the bits."""
        return f"libggml-base sha256:{library_digest()}"

    def parts(self, shape: tuple[int, ...], dtype: str) -> tuple[Part, ...]:
        """One part; a row is columns / block blocks."""
        kind = GGML_TYPES[self.name]
        assert shape[-1] % kind.block == 0, (shape, self)
        row_bytes = shape[-1] // kind.block * kind.block_bytes
        return (Part("", self.name, shape, 1, row_bytes),)

    def reduce(self, state: Any, block: Block) -> Any:
        """Never called: rows are quantized each on its own."""
        raise AssertionError("ggml types have no reduction")

    def encode(self, block: Block, state: Any, importance: Importance | None) -> Encoded:
        """(rows, columns) values -> (rows, row bytes); TensorError if the blocks are not valid."""
        library, kind = _quantizer(self.name, library_path()), GGML_TYPES[self.name]
        weights = None
        assert importance is not None or self.name not in ABORTS_WITHOUT_IMPORTANCE, self
        if importance is not None:
            weights = np.ascontiguousarray(importance.values, dtype=np.float32)
            columns = block.raw.shape[1]
            assert weights.shape == (1, columns), (weights.shape, columns)  # ggml would read on
        build = kernel_build(self.name, block.dtype)
        if build is not None:
            out = kernels.quantize(build, block.raw, block.dtype, self.name, weights)
        else:
            out = quantize_chunk(self.name, block.float32(), weights)
        if not library.ggml_validate_row_data(kind.number, out.ctypes.data, out.nbytes):
            raise TensorError(
                f"{block.name}: rows from {block.first_row} on do not fit into {self.name}: a scale"
                " became infinite; the weights are too large for this type"
            )
        return Encoded((out,))

    def decode(self, stored: Sequence[NDArray[np.uint8]], shape: tuple[int, ...]) -> Float32:
        """Values of quantized blocks, by ggml's own `dequantize_row_*`."""
        values = np.empty(math.prod(shape), dtype=np.float32)
        dequantize = getattr(_library(library_path()), f"dequantize_row_{_symbol(self.name)}")
        dequantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        data = np.ascontiguousarray(stored[0])
        dequantize(data.ctypes.data, values.ctypes.data, values.size)
        return values.reshape(shape)


def _symbol(name: str) -> str:
    """ggml's spelling in symbols: `Q4_K` is `q4_K`, `IQ4_XS` is `iq4_xs`."""
    return name.lower().replace("_k", "_K") if name.endswith("_K") else name.lower()
