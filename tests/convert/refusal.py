"""Bad input is refused with one line, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.errors import InputError
from quantize.job import quantize

TARGETS = ["BF16", "Q4_K_M", "FP8_DYNAMIC"]


def refuse(source: str | Path, *found: str) -> None:
    """Quantizing `source` must fail with one line that says all of `found`, and leave nothing."""
    out = Path(source).parent / "out"
    with pytest.raises(InputError) as raised:
        quantize(str(source), out, TARGETS)
    message = str(raised.value)
    assert "\n" not in message
    for part in found:
        assert part in message, message
    assert not out.exists() or not any(out.iterdir())
