"""Our vectorised kernels: the bits of ggml's x86-64 quantizers and of our FP8, many times faster.

Comes in: rows as they are stored (bf16 bits, half precision, float32), all finite, with one
importance per column where a type takes it. Goes out: the blocks or codes of those rows.

ggml's quantizers are scalar code of plain IEEE single precision (no instruction of `libggml-base`
is wider or fused). Here a SIMD lane is one block and takes the same steps in the same order, so its
bits are the same for any number of lanes (`search.h`). One source is built three times, for 4, 8
and 16 lanes; the widest that the processor has is used. `HERMES_QUANT_KERNELS` = baseline, avx2 or
avx512 picks another, ggml none: then, as on machines where nothing was built, `quantize/ggml.py`
calls the library and `quantize/scaled.py` numpy. The interpreter's lock is released meanwhile.
"""

from __future__ import annotations

import logging
import os
from functools import cache

import numpy as np
from numpy.typing import NDArray

from convert.errors import InputError
from convert.tensor import Array, Block, Float32

try:
    from quantize.kernels.native import BUILDS as BUILDS
    from quantize.kernels.native import TYPES as TYPES
except ImportError:  # an optional extension: no compiler, or another processor
    BUILDS, TYPES = (), ()

VARIABLE = "HERMES_QUANT_KERNELS"
MISSING = (
    "the vectorised kernels were not built (they need x86-64 and GCC or Clang at installation);"
    " ggml and numpy make the same bytes, several times slower"
)
_log = logging.getLogger(__name__)


@cache
def build() -> str | None:
    """Which build of the kernels to use; None for ggml and numpy.

    Says so, once, where none was built and nobody asked for that.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "ggml":
        return None
    if not wanted and not BUILDS:
        _log.warning(MISSING)
        return None
    if wanted and wanted not in BUILDS:
        raise InputError(
            f"{VARIABLE}={wanted}: this machine has {', '.join((*BUILDS, 'ggml'))}; choose one of"
            " them or unset the variable"
        )
    return wanted or BUILDS[0]


def quantize(
    with_build: str, raw: Array, dtype: str, name: str, importance: Float32 | None
) -> NDArray[np.uint8]:
    """(rows, columns) of `dtype` -> (rows, row bytes), blocks of the ggml type `name`.

    `importance` is (columns,) or None, with the meaning it has for `ggml_quantize_chunk`.
    """
    from quantize.kernels import native

    values, block_bytes = native.SIZES[TYPES.index(name)]
    rows, columns = raw.shape
    out = np.empty((rows, columns // values * block_bytes), dtype=np.uint8)
    native.quantize(with_build, dtype, np.ascontiguousarray(raw), columns, name, importance, out)
    return out


def measure_absmax(with_build: str, block: Block) -> Float32:
    """(rows, 1) largest magnitudes of the rows."""
    from quantize.kernels import native

    rows, columns = block.raw.shape
    out = np.empty((rows, 1), dtype=np.float32)
    native.absmax(with_build, block.dtype, np.ascontiguousarray(block.raw), columns, out)
    return out


def encode_codes(
    with_build: str, block: Block, scales: Float32, code: str, rounded: str
) -> NDArray[np.uint8]:
    """Codes of rows / scales, the quotients rounded to the dtype `rounded` first; scales (rows, 1).

    `code` is E4M3, INT8, UINT8 (INT8 + 128) or INT4 (+ 8), one byte each.
    """
    from quantize.kernels import native

    out = np.empty(block.raw.shape, dtype=np.uint8)
    raw = np.ascontiguousarray(block.raw)
    scales = np.ascontiguousarray(scales, dtype=np.float32)
    native.codes(with_build, block.dtype, raw, raw.shape[1], rounded, code, scales, out)
    return out
