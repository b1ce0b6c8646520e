"""Token ids as a model takes them: rectangles, shorter rows padded on the right.

Padding on the right keeps every token at the position it has alone; a causal mask then hides the
padding from every real token, and what is computed at padded places is to be ignored (`mask`).

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from convert.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Ids (B, T) int64 and which of them are real (B, T) bool."""

    ids: torch.Tensor
    mask: torch.Tensor


def padded_batches(prompts: Sequence[Sequence[int]], rows: int) -> list[Batch]:
    """The prompts in the order given, `rows` to a batch; InputError for an empty prompt."""
    batches = []
    for start in range(0, len(prompts), rows):
        part = prompts[start : start + rows]
        width = max(len(prompt) for prompt in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        mask = torch.zeros(len(part), width, dtype=torch.bool)
        for row, prompt in enumerate(part):
            if not prompt:
                raise InputError(f"prompt {start + row} has no tokens; expected at least one")
            ids[row, : len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
            mask[row, : len(prompt)] = True
        batches.append(Batch(ids, mask))
    return batches
