"""The target SAFETENSORS: an edited checkpoint as a Hugging Face folder, file for file.

In: a model whose checkpoint is read through edits. Out: the planned folder `<name>-SAFETENSORS`.
Headers are the source's own bytes and every tensor lies where it lay, so that two files differ in
the edited tensors' bytes and nowhere else. Index, config and all other side files are copied. The
folder of a checkpoint that nothing edits would be a copy of it: that is refused.
"""

from __future__ import annotations

from collections import defaultdict

from convert.cast import Cast
from convert.edited import EditedCheckpoint
from convert.errors import InputError
from convert.model import Model
from convert.output_tensor import OutputTensor, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile
from convert.shard_index import INDEX_NAME

TARGET = "SAFETENSORS"


def plan_copy(model: Model, target: str) -> PlannedArtifact:
    """Plan the folder of the edited checkpoint."""
    checkpoint = model.checkpoint
    if not isinstance(checkpoint, EditedCheckpoint):
        raise InputError(
            f"--to {target}: nothing edits the checkpoint, so this would be a copy of it; pass"
            " --abliterate EDIT or leave the target out"
        )
    placed: dict[str, list[PlacedTensor]] = defaultdict(list)
    for info in checkpoint.tensors.values():
        source = (Source(info, 0, info.rows),)
        output = OutputTensor(info.name, info.shape, info.dtype, Cast(info.dtype), source)
        placed[info.file].append(PlacedTensor(output, (info.offset,)))
    folder = f"{model.name}-{target}"
    files = []
    for shard in checkpoint.shards:
        path = checkpoint.path / shard
        header_bytes = min(tensor.offsets[0] for tensor in placed[shard])
        with path.open("rb") as stream:
            header = stream.read(header_bytes)
        size = path.stat().st_size
        files.append(PlannedFile(f"{folder}/{shard}", header, size, tuple(placed[shard])))
    index = (INDEX_NAME,) if (checkpoint.path / INDEX_NAME).is_file() else ()
    copies = (*checkpoint.side_files(), *index)
    return PlannedArtifact(folder, target, tuple(files), copies, is_folder=True)
