"""Where torch computes: whether it can, and what it says when there is no memory.

In: a device by torch's name for it. Out: an UnsupportedError where this torch has no such device; a
ContextError in place of what torch raises for a text that does not fit, which is one type on a GPU
and another, told from other mistakes by its words alone, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from convert.errors import ContextError, UnsupportedError


def check_torch_device(device: str) -> None:
    """UnsupportedError if this torch has no such device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UnsupportedError(
            f"device {device!r}: torch {torch.__version__} cannot compute there: {reason}"
        ) from error


@contextmanager
def memory_for(tokens: int, rows: int) -> Iterator[None]:
    """ContextError where there is no memory for so many tokens in so many rows."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not full and "allocate memory" not in str(error):
            raise
        raise ContextError(
            f"no memory for {rows} rows of {tokens} tokens; a smaller --batch needs less"
        ) from error
