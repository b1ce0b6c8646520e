"""How long the work on weights will take here: each kernel timed on one block of random values.

In: a plan. Out: seconds of one thread. The plan says how many values there are of each kind; the
disk, and reading what is reduced first, are not in it.
"""

from __future__ import annotations

import math
import time

import numpy as np

from convert.output_tensor import OutputTensor, Scheme
from convert.plan import Plan
from convert.tensor import DTYPES, Block

_SAMPLE_VALUES = 1 << 18


def encoding_seconds(plan: Plan) -> float:
    """Seconds of one thread for all encodings, from one timed block for each kernel."""
    rates: dict[tuple[str, str, bool], float] = {}
    total = 0.0
    for encoding in plan.encodings:
        tensor = encoding.tensor
        if not tensor.sources:
            continue
        key = (tensor.scheme.name, tensor.sources[0].tensor.dtype, tensor.importance is not None)
        if key not in rates:
            rates[key] = _rate(tensor)
        passes = 2 if tensor.scheme.needs_reduce else 1
        total += passes * math.prod(tensor.shape) / rates[key]
    return total


def _rate(tensor: OutputTensor) -> float:
    """Values a second that one thread encodes of a tensor like this."""
    columns, scheme = tensor.shape[-1], tensor.scheme
    step = scheme.block_rows
    rows = max(step, _SAMPLE_VALUES // columns // step * step)
    block = _random_block(tensor.sources[0].tensor.dtype, rows, columns)
    _encode(scheme, block, tensor)  # the first call checks and loads kernels
    begin = time.perf_counter()
    _encode(scheme, block, tensor)
    return rows * columns / max(time.perf_counter() - begin, 1e-9)


def _encode(scheme: Scheme, block: Block, tensor: OutputTensor) -> None:
    state = scheme.reduce(None, block) if scheme.needs_reduce else None
    scheme.encode(block, state, tensor.importance_at(0))


def _random_block(dtype: str, rows: int, columns: int) -> Block:
    values = np.random.default_rng(0).standard_normal((rows, columns), np.float32) * 0.02
    storage = DTYPES[dtype].storage
    if dtype == "BF16":
        raw = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        raw = values.astype(np.float16 if dtype == "F16" else np.float32)
    return Block("sample", dtype, 0, raw.view(storage))
