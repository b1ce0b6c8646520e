"""A repository on the hub, by its headers: configs and tokenizer are fetched, weights never.

safetensors headers come through huggingface_hub's own range reader, GGUF headers through its file
system (fsspec), a megabyte at a time as the parser walks on. Out: a `Checkpoint` without weights,
from which everything can be planned as from a whole one, or parsed GGUF headers with the sizes of
their files. A GGUF header holds the vocabulary, so a Llama 3 file costs about 8 MB.

`HF_ENDPOINT` and `HF_TOKEN` work as everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError
from convert.gguf_reader import GGUFFile, read_gguf_bytes
from convert.hub import Origin, download, hub_errors
from convert.model_spec import read_model_spec
from convert.tensor import DTYPES, TensorInfo

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds: its commit and the names of its files."""

    repo: str
    revision: str
    files: tuple[str, ...]

    def named(self, suffix: str) -> tuple[str, ...]:
        """Files whose name ends so."""
        return tuple(file for file in self.files if file.endswith(suffix))


def list_repository(repo: str, revision: str | None) -> Listing:
    """Ask the hub for the commit and the files; no content is read."""
    from huggingface_hub import HfApi

    with hub_errors(repo, revision):
        api = HfApi()
        commit = api.model_info(repo, revision=revision).sha or revision or "main"
        files = tuple(sorted(api.list_repo_files(repo, revision=commit)))
    return Listing(repo, commit, files)


def open_headers(listing: Listing) -> tuple[Origin, Checkpoint]:
    """The checkpoint of a repository, its tensors known from their headers only."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    origin = download(listing.repo, listing.revision, weights=False)
    spec = read_model_spec(origin.folder / "config.json")
    try:
        with hub_errors(listing.repo, listing.revision):
            found = HfApi().get_safetensors_metadata(listing.repo, revision=listing.revision)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{listing.repo}: no readable safetensors headers: {reason}"
        ) from error
    shards = tuple(sorted(found.files_metadata))
    tensors = {
        name: _info(listing, name, entry, shard)
        for shard in shards
        for name, entry in found.files_metadata[shard].tensors.items()
    }
    return origin, Checkpoint(origin.folder, spec, shards, tensors, {}, listing.revision)


def _info(listing: Listing, name: str, entry: Any, shard: str) -> TensorInfo:
    shape, (begin, end) = tuple(entry.shape), entry.data_offsets
    if entry.dtype not in DTYPES:
        raise CheckpointError(
            f"{listing.repo}: {shard}: tensor {name!r} has the unknown dtype {entry.dtype!r}"
        )
    info = TensorInfo(name, entry.dtype, shape, shard, begin)
    if info.size_bytes != end - begin:
        raise CheckpointError(
            f"{listing.repo}: {shard}: tensor {name!r} has {end - begin} bytes in the header, but"
            f" {entry.dtype} {list(shape)} takes {info.size_bytes}"
        )
    return info


class RemoteBytes:
    """A file on the hub as bytes that are fetched when they are looked at, in whole chunks."""

    def __init__(self, stream: Any, size: int) -> None:
        self.stream, self.size = stream, size
        self.chunks: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self.size)
        first, last = start // _CHUNK_BYTES, max(stop - 1, start) // _CHUNK_BYTES
        if first == last:
            offset = first * _CHUNK_BYTES
            return self._chunk(first)[start - offset : stop - offset]
        joined = b"".join(self._chunk(i) for i in range(first, last + 1))
        offset = first * _CHUNK_BYTES
        return joined[start - offset : stop - offset]

    def _chunk(self, index: int) -> bytes:
        if index not in self.chunks:
            self.stream.seek(index * _CHUNK_BYTES)
            self.chunks[index] = self.stream.read(_CHUNK_BYTES)
        return self.chunks[index]


def read_remote_gguf(listing: Listing, file: str) -> tuple[GGUFFile, int]:
    """The header of a GGUF file on the hub, and the size of the file."""
    from huggingface_hub import HfFileSystem

    with hub_errors(listing.repo, listing.revision):
        where = f"{listing.repo}@{listing.revision}/{file}"
        with HfFileSystem().open(where, block_size=_CHUNK_BYTES, cache_type="none") as stream:
            size = int(stream.size)
            return read_gguf_bytes(Path(where), RemoteBytes(stream, size)), size
