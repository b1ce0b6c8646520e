"""Sizes as people write them: `50GB` is 50 * 10^9 bytes, `50GiB` is 50 * 2^30. A unit is required,
because 7% lie between the two at a gigabyte and nobody remembers which one a bare number means.
"""

from __future__ import annotations

import re
from decimal import Decimal

from convert.errors import InputError

_UNITS = {
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("kMGT", 1)},
    **{f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)},
}
_SIZE = re.compile(r"\s*(\d{1,21}(?:\.\d{1,21})?)\s*([kKMGT]?i?B)\s*")


def parse_size(text: str) -> int:
    """Bytes in `text`; InputError where number or unit is missing or unknown."""
    match = _SIZE.fullmatch(text)
    unit = match[2] if match else ""
    unit = "kB" if unit == "KB" else unit
    if match is None or unit not in _UNITS or not Decimal(match[1]):
        raise InputError(f"{text!r} is not a size; write a number and a unit: 50GB or 46.5GiB")
    return int(Decimal(match[1]) * _UNITS[unit])  # 4.1GB is not 4099999999
