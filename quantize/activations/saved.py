"""A run over layers that survives being killed: the last finished layer, on disk.

One file holds the states that enter the next layer and the statistics so far; it is written beside
its final name, flushed, and renamed, so that there is always a whole one. It is known by a key (the
model, the text, the dtype); a file with another key, or one that cannot be read, is not taken up.

The file has the size of the hidden states, tokens x hidden x bytes of the dtype, and is written
once a layer. No pickle is read.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convert.errors import OutputError
from convert.staging import flush
from quantize.activations.batch import Batch
from quantize.activations.layers import DTYPES
from quantize.activations.run import Start
from quantize.activations.statistics import Statistics

_HIDDEN = "hidden:"


def save_progress(path: Path, key: str, start: Start, statistics: Statistics) -> None:
    """Keep where to go on; OutputError where it cannot be written."""
    contents: dict[str, Any] = {
        f"{_HIDDEN}{i}": states.contiguous().view(torch.uint8).numpy()
        for i, states in enumerate(start.hidden)
    }
    contents |= {"key": np.array(key), "layer": np.array(start.layer), **statistics.to_arrays()}
    temporary = path.with_suffix(".part")
    try:
        with temporary.open("wb") as stream:
            np.savez(stream, **contents)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error


def take_up(
    path: Path, key: str, batches: Sequence[Batch], dtype: str, statistics: Statistics
) -> Start | None:
    """Where an earlier run with this key stopped, its statistics put back; None for the start."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            layer = int(file["layer"])
            hidden = [
                torch.from_numpy(file[f"{_HIDDEN}{i}"]).view(DTYPES[dtype])
                for i in range(len(batches))
            ]
            found = {name: file[name] for name in file.files if not name.startswith(_HIDDEN)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    statistics.from_arrays(found)
    return Start(layer, hidden)
