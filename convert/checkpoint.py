"""A Hugging Face checkpoint on disk: which tensors it has, where, and their rows on demand.

`Checkpoint.open` reads config.json, the index and every safetensors header, and no weight; what
does not add up (a shard the index names that is not there, a tensor in two shards, a header that
lies about its file) is refused then, before any output exists. `read_rows` reads exactly the rows
asked for with pread, so that threads share one descriptor a shard and memory holds only what is
being worked on. Pickled checkpoints (`.bin`, `.pth`) are never loaded: unpickling runs code.

The fingerprint covers config, index, headers, and each shard's size and modification time: enough
to notice that a source was replaced, without reading its weights. Sizes and times are taken before
anything is read, of the files beside the weights too. A shard's are looked at again after every
read, so that no row of a source that has changed is ever taken for one of the source that was
opened, even if the old times come back later.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from convert import safetensors
from convert.errors import CheckpointError
from convert.model_spec import ModelSpec, read_json_object, read_model_spec
from convert.shard_index import (
    INDEX_NAME,
    PICKLE_SUFFIXES,
    SINGLE_NAME,
    check_index,
    find_shards,
    read_index,
)
from convert.staging import SIDECAR_NAME
from convert.tensor import DTYPES, Array, Block, TensorInfo

WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".h5", ".msgpack", *PICKLE_SUFFIXES)
CONFIG_NAME = "config.json"
_CHUNK_BYTES = 1 << 20
_AHEAD_BYTES = 1 << 17
"""Linux takes no more of one request to read ahead than the device's own window, 128 KiB unless
somebody set it otherwise (`force_page_cache_ra` in mm/readahead.c)."""
TEMPLATE_FOLDER = "additional_chat_templates"
RECIPE_NAME = "release.yaml"
"""A recipe may lie beside the weights; it says how to release them and is no part of them."""


Stamp = tuple[int, int]
"""Size and modification time (ns): what tells that a file has changed."""


@dataclass(slots=True)
class Checkpoint:
    """An opened checkpoint; use it as a context manager so that its descriptors are closed.

    `stamps` are of the shards, `beside` of what lies beside them, both as they were when opened.
    """

    path: Path
    spec: ModelSpec
    shards: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    stamps: dict[str, Stamp]
    revision: str | None = None
    beside: dict[str, Stamp] = field(default_factory=dict)
    _descriptors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, revision: str | None = None) -> Checkpoint:
        """Read config, index and headers of the checkpoint folder `path`."""
        if not path.is_dir():
            raise CheckpointError(f"{path}: not a folder; expected a Hugging Face checkpoint")
        beside = {name: _stamp(path / name) for name in _names_beside(path)}
        spec = read_model_spec(path / CONFIG_NAME)
        weight_map = read_index(path)
        shards = tuple(sorted(set(weight_map.values()))) if weight_map else find_shards(path)
        if SINGLE_NAME not in shards and (path / SINGLE_NAME).is_file():
            raise CheckpointError(
                f"{path}: {INDEX_NAME} names other files than {SINGLE_NAME}, which is there too;"
                " transformers would read that one. Remove what is stale"
            )
        stamps = {shard: _stamp(path / shard) for shard in shards}
        tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            for info in safetensors.read_header(path / shard, shard):
                if info.name in tensors:
                    first = tensors[info.name].file
                    raise CheckpointError(
                        f"{path}: tensor {info.name!r} is in {first} and in {shard}"
                    )
                tensors[info.name] = info
        check_index(path, weight_map, tensors)
        return cls(path, spec, shards, tensors, stamps, revision, beside)

    @classmethod
    def open_without_weights(cls, path: Path) -> Checkpoint:
        """A folder that may hold no weights: then it has no shards and no tensors."""
        if not path.is_dir() or any(path.glob("*.safetensors")):
            return cls.open(path)
        return cls(path, read_model_spec(path / CONFIG_NAME), (), {}, {})

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards' descriptors."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def open_shards(self) -> None:
        """Open every shard now, so that threads only ever look descriptors up."""
        for shard in self.shards:
            if shard not in self._descriptors:
                try:
                    self._descriptors[shard] = os.open(self.path / shard, os.O_RDONLY)
                except OSError as error:
                    raise CheckpointError(
                        f"{self.path / shard}: cannot be opened: {error.strerror}"
                    ) from error
                self._check_stamp(shard)

    def will_read(self, info: TensorInfo, start: int, stop: int) -> None:
        """Tell the kernel that these rows are wanted soon, so that it reads while others work."""
        self.open_shards()
        descriptor, end = self._descriptors[info.file], info.offset + stop * info.row_bytes
        with suppress(OSError):  # it is advice
            for at in range(info.offset + start * info.row_bytes, end, _AHEAD_BYTES):
                size = min(_AHEAD_BYTES, end - at)
                os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_WILLNEED)

    def read_rows(
        self, info: TensorInfo, start: int, stop: int, buffer: NDArray[np.uint8] | None = None
    ) -> Block:
        """Rows `start` to `stop` of `info`, as stored: (stop - start) * row_bytes bytes.

        The block's values lie in `buffer`, if there is one, until that is read into again. Raises
        CheckpointError where they cannot be read, or the shard is not what was opened.
        """
        self.open_shards()
        size = (stop - start) * info.row_bytes
        if buffer is None:
            buffer = np.empty(size, dtype=np.uint8)
        raw = buffer[:size].view(DTYPES[info.dtype].storage).reshape(stop - start, info.columns)
        view = buffer[:size].data
        offset, done = info.offset + start * info.row_bytes, 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptors[info.file], [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path / info.file}: read error at byte {offset + done}: {error.strerror}"
                ) from error
            if count == 0:
                raise CheckpointError(
                    f"{self.path / info.file}: ends at byte {offset + done}, inside {info.name!r};"
                    " it was cut while it was read"
                )
            done += count
        self._check_stamp(info.file)
        return Block(info.name, info.dtype, start, raw)

    def read_tensor(self, name: str) -> Array:
        """A whole tensor in its stored shape; for small ones and for tests."""
        info = self.tensors[name]
        return self.read_rows(info, 0, info.rows).raw.reshape(info.shape)

    def check_unchanged(self, names: Iterable[str]) -> None:
        """Raise CheckpointError if one of these files has changed since `open`."""
        for name in names:
            self._check_stamp(name)

    def has_changed(self, names: Iterable[str]) -> bool:
        """Whether one of these is known to be another; what cannot be looked at may come back."""
        for name in names:
            with suppress(CheckpointError):
                if _stamp(self.path / name) != self._known(name):
                    return True
        return False

    def _known(self, name: str) -> Stamp | None:
        return self.stamps.get(name) or self.beside.get(name)

    def _check_stamp(self, name: str) -> None:
        if _stamp(self.path / name) != self._known(name):
            raise CheckpointError(f"{self.path / name}: changed while it was read; run again")

    def fingerprint(self) -> str:
        """sha256 over config, index, headers, sizes and modification times."""
        digest = hashlib.sha256()
        self.read_side_file(CONFIG_NAME, digest.update)
        for shard in self.shards:
            digest.update(repr((shard, self.stamps[shard])).encode())
        for info in self.tensors.values():
            digest.update(repr(info).encode())
        return digest.hexdigest()

    def side_files(self) -> tuple[str, ...]:
        """Everything a loader reads beside the weights, as paths relative to the checkpoint.

        Python files travel only where config.json points to them (`auto_map`).
        """
        python = "auto_map" in read_json_object(self.path / CONFIG_NAME)
        return tuple(
            name
            for name in _names_beside(self.path)
            if name != INDEX_NAME and (python or not name.endswith(".py"))
        )

    def side_file_bytes(self, names: Iterable[str]) -> int:
        """Bytes of these side files together."""
        return sum(_stamp(self.path / name)[0] for name in names)

    def read_side_file(self, name: str, on_read: Callable[[bytes], object]) -> None:
        """Hand a side file on in pieces: whatever lies in the folder may be one, of any size."""
        try:
            with (self.path / name).open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    on_read(chunk)
        except OSError as error:
            raise CheckpointError(
                f"{self.path / name}: cannot be read: {error.strerror}"
            ) from error


def _names_beside(path: Path) -> tuple[str, ...]:
    """The index, and all that may be a side file."""
    try:
        files = [entry for entry in sorted(path.iterdir()) if entry.is_file()]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    names = [
        entry.name
        for entry in files
        if not entry.name.startswith((".", "hermes-quant"))
        and not entry.name.endswith(SIDECAR_NAME)
        and entry.name != RECIPE_NAME
        and entry.suffix not in WEIGHT_SUFFIXES
        and (entry.name == INDEX_NAME or not entry.name.endswith(".safetensors.index.json"))
    ]
    templates = sorted((path / TEMPLATE_FOLDER).glob("*.jinja"))
    return (*names, *(f"{TEMPLATE_FOLDER}/{template.name}" for template in templates))


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns
