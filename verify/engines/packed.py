"""Replies and log-probabilities as arrays of numbers, which a file can hold without pickling.

In: what an engine gave. Out: arrays by name, and from them the same values again, bit for bit.
Replies are one array of ids and one of lengths; every field of every `Scored` is an array by itself
(the number of candidates differs from text to text where a server named them); all else is JSON, as
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from verify.answer_cache import Arrays
from verify.engines import EngineInfo
from verify.engines.log_probabilities import Scored

_FIELDS = tuple(field.name for field in fields(Scored))


def pack_replies(replies: Sequence[Sequence[int]]) -> Arrays:
    """Lists of ids."""
    flat = [token for reply in replies for token in reply]
    lengths = [len(reply) for reply in replies]
    return {"ids": np.array(flat, np.int64), "lengths": np.array(lengths, np.int64)}


def unpack_replies(stored: Mapping[str, Any]) -> list[list[int]]:
    """What `pack_replies` was given."""
    ends = np.cumsum(stored["lengths"]).tolist()
    ids = stored["ids"].tolist()
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def pack_scored(scored: Sequence[Scored]) -> Arrays:
    """Log-probabilities along several texts."""
    return {f"{name}_{i}": getattr(s, name) for i, s in enumerate(scored) for name in _FIELDS}


def unpack_scored(stored: Mapping[str, Any], count: int) -> list[Scored]:
    """What `pack_scored` was given: `count` of them."""
    return [Scored(*(stored[f"{name}_{i}"] for name in _FIELDS)) for i in range(count)]


def pack_info(info: EngineInfo) -> Arrays:
    """An engine's statement of how it computes."""
    return pack_json({**asdict(info), "capabilities": sorted(info.capabilities)})


def unpack_info(stored: Mapping[str, Any]) -> EngineInfo:
    """What `pack_info` was given."""
    known = unpack_json(stored)
    return EngineInfo(**{**known, "capabilities": frozenset(known["capabilities"])})


def pack_json(value: Any) -> Arrays:
    """A JSON value."""
    return {"json": np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)}


def unpack_json(stored: Mapping[str, Any]) -> Any:
    """What `pack_json` was given."""
    return json.loads(stored["json"].tobytes())
