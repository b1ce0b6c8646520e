"""A Hugging Face checkpoint on disk: which tensors it has, where, and their rows on demand.

`Checkpoint.open` reads config.json, the index and every safetensors header, and no weight; what
does not add up (a shard the index names that is not there, a tensor in two shards, a header that
lies about its file) is refused then, before any output exists. `read_rows` reads exactly the rows
asked for with pread, so that threads share one descriptor a shard and memory holds only what is
being worked on. Pickled checkpoints (`.bin`, `.pth`) are never loaded: unpickling runs code.

The fingerprint covers config, index, headers, and each shard's size and modification time: enough
to notice that a source was replaced, without reading its weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from convert import safetensors
from convert.errors import CheckpointError
from convert.model_spec import ModelSpec, read_json_object, read_model_spec
from convert.staging import SIDECAR_NAME
from convert.tensor import DTYPES, Array, Block, TensorInfo

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
WEIGHT_SUFFIXES = (".safetensors", ".gguf", ".h5", ".msgpack", *PICKLE_SUFFIXES)
_CHUNK_BYTES = 1 << 20
TEMPLATE_FOLDER = "additional_chat_templates"
RECIPE_NAME = "release.yaml"
"""A recipe may lie beside the weights; it says how to release them and is no part of them."""


@dataclass(slots=True)
class Checkpoint:
    """An opened checkpoint; use it as a context manager so that its descriptors are closed."""

    path: Path
    spec: ModelSpec
    shards: tuple[str, ...]
    tensors: dict[str, TensorInfo]
    stamps: dict[str, tuple[int, int]]
    revision: str | None = None
    _descriptors: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, revision: str | None = None) -> Checkpoint:
        """Read config, index and headers of the checkpoint folder `path`."""
        if not path.is_dir():
            raise CheckpointError(f"{path}: not a folder; expected a Hugging Face checkpoint")
        spec = read_model_spec(path / "config.json")
        weight_map = _read_index(path)
        shards = tuple(sorted(set(weight_map.values()))) if weight_map else _find_shards(path)
        if SINGLE_NAME not in shards and (path / SINGLE_NAME).is_file():
            raise CheckpointError(
                f"{path}: {INDEX_NAME} names other files than {SINGLE_NAME}, which is there too;"
                " transformers would read that one. Remove what is stale"
            )
        tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            for info in safetensors.read_header(path / shard, shard):
                if info.name in tensors:
                    first = tensors[info.name].file
                    raise CheckpointError(
                        f"{path}: tensor {info.name!r} is in {first} and in {shard}"
                    )
                tensors[info.name] = info
        _check_index(path, weight_map, tensors)
        stamps = {shard: _stamp(path / shard) for shard in shards}
        return cls(path, spec, shards, tensors, stamps, revision)

    @classmethod
    def open_without_weights(cls, path: Path) -> Checkpoint:
        """A folder that may hold no weights: then it has no shards and no tensors."""
        if not path.is_dir() or any(path.glob("*.safetensors")):
            return cls.open(path)
        return cls(path, read_model_spec(path / "config.json"), (), {}, {})

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

    def read_rows(
        self, info: TensorInfo, start: int, stop: int, buffer: NDArray[np.uint8] | None = None
    ) -> Block:
        """Rows `start` to `stop` of `info`, as stored: (stop - start) * row_bytes bytes.

        The block's values lie in `buffer`, if there is one, until that is read into again.
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
        return Block(info.name, info.dtype, start, raw)

    def read_tensor(self, name: str) -> Array:
        """A whole tensor in its stored shape; for small ones and for tests."""
        info = self.tensors[name]
        return self.read_rows(info, 0, info.rows).raw.reshape(info.shape)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a shard's size or modification time has changed since `open`."""
        for shard in self.stamps:
            self._check_stamp(shard)

    def is_unchanged(self) -> bool:
        """Whether every shard is still what it was when the checkpoint was opened."""
        try:
            self.check_unchanged()
        except CheckpointError:
            return False
        return True

    def _check_stamp(self, shard: str) -> None:
        if _stamp(self.path / shard) != self.stamps[shard]:
            raise CheckpointError(f"{self.path / shard}: changed while it was read; run again")

    def fingerprint(self) -> str:
        """sha256 over config, index, headers, sizes and modification times."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for shard in self.shards:
            digest.update(repr((shard, self.stamps[shard])).encode())
        for info in self.tensors.values():
            digest.update(repr(info).encode())
        return digest.hexdigest()

    def side_files(self) -> tuple[str, ...]:
        """Everything a loader reads beside the weights, as paths relative to the checkpoint.

        Python files travel only where config.json points to them (`auto_map`).
        """
        python = "auto_map" in read_json_object(self.path / "config.json")
        names = [
            entry.name
            for entry in sorted(self.path.iterdir())
            if entry.is_file()
            and not entry.name.startswith((".", "hermes-quant"))
            and not entry.name.endswith(SIDECAR_NAME)
            and entry.name != RECIPE_NAME
            and entry.suffix not in WEIGHT_SUFFIXES
            and not entry.name.endswith(".safetensors.index.json")
            and (python or entry.suffix != ".py")
        ]
        templates = sorted((self.path / TEMPLATE_FOLDER).glob("*.jinja"))
        return (*names, *(f"{TEMPLATE_FOLDER}/{template.name}" for template in templates))

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


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _read_index(path: Path) -> dict[str, str]:
    """The index's tensor name -> shard map; empty where there is no index."""
    index = path / INDEX_NAME
    if not index.is_file():
        return {}
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index}: {name!r} is said to be in {shard!r}, not a file name")
        if not os.path.isfile(path / shard):  # Path.is_file raises for a name that is too long
            raise CheckpointError(f"{path / shard}: missing; {index.name} needs it for {name!r}")
        if not shard.endswith(".safetensors"):  # it would be a side file too, copied over its shard
            raise CheckpointError(
                f"{path / shard}: {index.name} needs it for {name!r}; expected a .safetensors file"
            )
    return weight_map


def _find_shards(path: Path) -> tuple[str, ...]:
    """Shards of a checkpoint without an index: one model.safetensors, or the only one there is."""
    if (path / SINGLE_NAME).is_file():
        return (SINGLE_NAME,)
    found = sorted(entry.name for entry in path.glob("*.safetensors"))
    if len(found) == 1:
        return tuple(found)
    if found:
        raise CheckpointError(
            f"{path}: {len(found)} safetensors files and no {INDEX_NAME}; the index is missing"
        )
    pickles = sorted(e.name for e in path.iterdir() if e.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(
            f"{path}: only pickled weights ({pickles[0]}); unpickling runs code, so they are never"
            " loaded. Convert them to safetensors in a sandbox first"
        )
    raise CheckpointError(f"{path}: no {SINGLE_NAME} and no {INDEX_NAME}")


def _check_index(path: Path, weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    """The index and the headers must tell the same story."""
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(f"{path / shard}: lacks {name!r}, which {INDEX_NAME} promises")
        found = tensors[name].file
        if found != shard:
            raise CheckpointError(
                f"{path / INDEX_NAME}: {name!r} is said to be in {shard}, it is in {found}"
            )
    for name, info in tensors.items():
        if weight_map and name not in weight_map:
            raise CheckpointError(f"{path / info.file}: holds {name!r}, which {INDEX_NAME} omits")
