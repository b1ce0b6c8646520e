"""Short greedy replies of a model that runs layer by layer, resumable by layer.

In: prompts as token ids. Out: the ids that each is continued by. Meant for the few words by which a
refusal shows: every token is a pass over all layers, and no KV cache is kept between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.workers import Steps
from quantize.activations.saved import Progress, saver
from quantize.activations.steering import NOTHING, Prompts, steered_logits


def greedy_replies(
    folder: Path,
    prompts: Prompts,
    tokens: int,
    stop_ids: frozenset[int],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
    on_progress: Steps | None = None,
) -> list[list[int]]:
    """Greedy continuations of at most `tokens` ids, the first of `stop_ids` included."""
    said = _Replies(prompts)
    start = progress.take_up(dtype, said) if progress else None
    for _ in range(said.length, tokens):
        going = [i for i, reply in enumerate(said.ids) if not reply or reply[-1] not in stop_ids]
        if not going:
            break
        (found,) = steered_logits(
            folder,
            [([[*prompts[i], *said.ids[i]] for i in going], NOTHING)],
            device=device,
            dtype=dtype,
            start=start,
            after_layer=saver(progress, said),
            on_progress=on_progress,
        )
        start = None
        for index, row in zip(going, found, strict=True):
            said.ids[index].append(int(row.argmax()))
    return said.ids


class _Replies:
    """What was replied so far, by prompt; a pass over layers begins and ends with the same."""

    def __init__(self, prompts: Prompts) -> None:
        self.ids: list[list[int]] = [[] for _ in prompts]

    @property
    def length(self) -> int:
        """Of the longest one: how many passes are done."""
        return max(map(len, self.ids), default=0)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """One array of text."""
        return {"replies": np.array(json.dumps(self.ids))}

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `to_arrays` gave."""
        self.ids = json.loads(str(arrays["replies"]))
