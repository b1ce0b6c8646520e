"""A calibration on disk: what one pass over conversations found out about a model's activations.

    CAL/imatrix.gguf       importance of every matrix's columns, as llama-imatrix writes it
    CAL/activations.json   largest magnitudes: {"inputs": {module: a}, "keys": [a, one a layer],
                           "values": [a, one a layer]}
    CAL/tokens.npy         the text: int32 (chunks, tokens of a chunk)
    CAL/calibration.json   which model, which text, how it was computed, sha256 of the others

`calibration.json` is written last, so a folder that has one that matches is complete. `model` in it
is a digest of the architecture and every tensor's name and shape: a calibration serves the model it
was made from and any edit of it, and is refused for another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, InputError
from convert.model_spec import read_json_object
from convert.staging import hash_file
from convert.tensor import TensorInfo
from quantize.calibration_text import CalibrationText

RECORD, IMATRIX, ACTIVATIONS = "calibration.json", "imatrix.gguf", "activations.json"
TOKENS = "tokens.npy"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """A complete calibration: its folder, its record, and the largest magnitudes."""

    folder: Path
    record: Mapping[str, Any]
    inputs: Mapping[str, float]
    keys: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def imatrix(self) -> Path:
        """The importance matrix."""
        return self.folder / IMATRIX

    @property
    def sha256(self) -> str:
        """What identifies it in a recipe: the digest of the magnitudes."""
        return str(self.record["files"][ACTIVATIONS])

    def text(self) -> CalibrationText:
        """The tokens it was made over."""
        data = self.record["data"]
        try:
            chunks = np.load(self.folder / TOKENS, allow_pickle=False)
            return CalibrationText(
                str(data["name"]),
                str(data["sha256"]),
                int(data["conversations"]),
                int(data["chunk_tokens"]),
                tuple(tuple(map(int, chunk)) for chunk in chunks),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder / TOKENS}: cannot be read: {error}") from error

    def input_absmax(self, module: str) -> float:
        """The largest magnitude that entered a matrix; InputError where no token ever did."""
        found = self.inputs.get(module, 0.0)
        if not found > 0:
            raise InputError(
                f"{self.folder}: no token of the calibration text reached {module}; calibrate with"
                " more text"
            )
        return found


def model_digest(architecture: str, tensors: Mapping[str, TensorInfo]) -> str:
    """sha256 over the architecture and every tensor's name and shape."""
    shapes = sorted((name, list(info.shape)) for name, info in tensors.items())
    return hashlib.sha256(json.dumps([architecture, shapes]).encode()).hexdigest()


def read_calibration(folder: Path) -> Calibration:
    """Read a calibration; InputError where it is incomplete or its files were changed."""
    try:
        record = read_json_object(folder / RECORD)
        if record.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{folder / RECORD}: schema_version {record.get('schema_version')!r}; expected"
                f" {SCHEMA_VERSION}"
            )
        if not isinstance(record["model"]["digest"], str):
            raise ValueError("model.digest is no text")
        for name in (IMATRIX, ACTIVATIONS, TOKENS):
            if hash_file(folder / name) != record["files"][name]:
                raise InputError(f"{folder / name}: not the file that {RECORD} describes")
        found = read_json_object(folder / ACTIVATIONS)
        return Calibration(
            folder=folder,
            record=record,
            inputs={name: float(value) for name, value in found["inputs"].items()},
            keys=tuple(map(float, found["keys"])),
            values=tuple(map(float, found["values"])),
        )
    except CheckpointError as error:
        raise InputError(f"{folder}: not a complete calibration: {error}") from error
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{folder}: not a complete calibration: {error!r}") from error


def check_model(calibration: Calibration, checkpoint: Checkpoint) -> None:
    """Raise InputError for a calibration of another model."""
    digest = model_digest(checkpoint.spec.architecture, checkpoint.tensors)
    if calibration.record["model"]["digest"] != digest:
        raise InputError(
            f"{calibration.folder}: made from another model"
            f" ({calibration.record['model'].get('name') or 'unnamed'}): its tensors' names and"
            f" shapes are not those of {checkpoint.path}"
        )
