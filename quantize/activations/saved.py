"""A run over layers that survives being killed: the last finished layer, on disk.

One file holds the states that enter the next layer and what was gathered so far; it is written
beside its final name, flushed, and renamed, so that there is always a whole one. It is known by a
key (the model, the text, the dtype); a file with another key, or one that cannot be read, is not
taken up.

The file has the size of the hidden states, tokens x hidden x bytes of the dtype. It is written
after a layer unless that would take more than a tenth of the time, as it would where layers are
small or a GPU is fast: then some layers are done again. No pickle is read.
"""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from convert.errors import OutputError
from convert.staging import flush
from quantize.activations.layers import DTYPES
from quantize.activations.run import Start

_HIDDEN = "hidden:"
_REST = 9
"""After a save, so many times as long as it took goes by before the next."""
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class Gathered(Protocol):
    """What a run gathers from layer to layer, as arrays by name."""

    def to_arrays(self) -> Mapping[str, NDArray[Any]]:
        """Everything so far."""
        ...

    def from_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `to_arrays` gave; other names may be among them."""
        ...


@dataclass(slots=True)
class Progress:
    """The file at `path`, as far as it is of `key`."""

    path: Path
    key: str
    _rests_until: float = field(default=0.0, init=False)

    def save(self, start: Start, gathered: Gathered | None = None) -> None:
        """Keep where to go on, if it is time; OutputError where it cannot be written."""
        begin = time.monotonic()
        if begin < self._rests_until:
            return
        contents: dict[str, Any] = {
            f"{_HIDDEN}{i}": states.contiguous().view(torch.uint8).numpy()
            for i, states in enumerate(start.hidden)
        }
        contents |= {"key": np.array(self.key), "layer": np.array(start.layer)}
        contents |= gathered.to_arrays() if gathered else {}
        temporary = self.path.with_suffix(".part")
        try:
            with temporary.open("wb") as stream:
                np.savez(stream, **contents)
            flush(temporary)
            os.replace(temporary, self.path)
            flush(self.path.parent)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error
        now = time.monotonic()
        self._rests_until = now + _REST * (now - begin)

    def take_up(self, dtype: str, gathered: Gathered | None = None) -> Start | None:
        """Where an earlier run of this key stopped, what it gathered put back; None for the start.

        States are in `dtype`, which the key must cover.
        """
        try:
            with np.load(self.path, allow_pickle=False) as file:
                if str(file["key"]) != self.key:
                    return None
                found = {name: file[name] for name in file.files}
            layer = int(found["layer"])
        except _BROKEN:
            return None
        count = sum(name.startswith(_HIDDEN) for name in found)
        hidden = [
            torch.from_numpy(found.pop(f"{_HIDDEN}{i}")).view(DTYPES[dtype]) for i in range(count)
        ]
        if gathered:
            gathered.from_arrays(found)
        return Start(layer, hidden)


def saver(
    progress: Progress | None, gathered: Gathered | None = None
) -> Callable[[Start], None] | None:
    """What `run_layers` is to call after each layer."""
    return None if progress is None else lambda start: progress.save(start, gathered)


def kept_key(path: Path) -> str | None:
    """The key of what an earlier run left; None where there is nothing that can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["key"])
    except _BROKEN:
        return None
