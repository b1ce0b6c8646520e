"""Plans of bare tensors, without a container, and how to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.output_tensor import OutputTensor, Source
from convert.plan import PlacedTensor, Plan, PlannedArtifact, PlannedFile
from convert.run import run

Q, K, V = (f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkv")


def make(plan: Plan, checkpoint: Checkpoint, out: Path, **how: Any) -> None:
    run(plan, checkpoint, out, source={}, recipe={}, tool="test", **how)


def one_file(*tensors: OutputTensor, name: str = "x") -> PlannedArtifact:
    """An artifact of bare tensors: parts one after the other, no header."""
    placed, end = [], 0
    for tensor in tensors:
        sizes = [part.size_bytes(tensor.rows) for part in tensor.parts]
        starts = [end + sum(sizes[:i]) for i in range(len(sizes))]
        placed.append(PlacedTensor(tensor, tuple(starts)))
        end += sum(sizes)
    return PlannedArtifact(name, "TEST", (PlannedFile(name, b"", end, tuple(placed)),))


def tensor(checkpoint: Checkpoint, name: str, scheme: Any, **more: Any) -> OutputTensor:
    info = checkpoint.tensors[name]
    source = (Source(info, 0, info.rows),)
    return OutputTensor(name, info.shape, info.dtype, scheme, source, **more)
