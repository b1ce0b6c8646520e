"""EDIT: the folder in which an abliteration lies between being chosen and being applied.

    edit.safetensors   F32 directions [hidden], of norm 1
    edit.json          which tensor is edited along which direction, how strongly; where the
                       directions come from (prompt sets, template, model), word for word

In and out: `EditFolder`. A person may write or change edit.json by hand, so it is read strictly; a
tensor is named in full, because a prefix (`model.layers.1`) would also mean layers 10 to 19.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from convert.edited import Edit, Edits
from convert.errors import CheckpointError, InputError, OutputError, TensorError, UnsupportedError
from convert.families.rules import Tensor
from convert.model import Model
from convert.safetensors import StoredTensor, layout, read_header
from convert.staging import write_whole
from convert.tensor import Float32
from quantize.abliteration.rank_one import EmbeddingEdit, RankOneEdit, direction_sha256

RECIPE_NAME, DIRECTIONS_NAME = "edit.json", "edit.safetensors"
WRITERS = ("attn_output", "ffn_down")
"""Roles of the projections that write to the residual stream."""
_UNIT_TOLERANCE = 1e-4


class TensorEdit(BaseModel):
    """One line of edit.json: a tensor, its direction by name, and how strongly."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tensor: str
    direction: str
    strength: Annotated[float, Field(gt=0, le=4, allow_inf_nan=False)]


class _Counted(BaseModel):
    refused: int
    prompts: int


class _Chosen(BaseModel):
    id: str
    bypass: float


class _Applied(BaseModel):
    candidate: _Chosen
    baseline: _Counted
    score_before: float


class _Told(BaseModel):
    """What reports repeat of a provenance, as far as it is there; the rest is anybody's."""

    source: dict[str, Any] = {}
    prompt_sets_sha256: dict[str, str] = {}


class Recipe(BaseModel):
    """edit.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    schema_version: Literal[1] = 1
    keep_norms: bool = False
    edits: Annotated[tuple[TensorEdit, ...], Field(min_length=1)]
    provenance: dict[str, Any] = {}

    @field_validator("provenance")
    @classmethod
    def _is_json(cls, provenance: dict[str, Any]) -> dict[str, Any]:
        """Reports repeat it, and JSON has no NaN."""
        json.dumps(provenance, allow_nan=False)
        _Told.model_validate(provenance)
        if "candidate" in provenance:
            _Applied.model_validate(provenance)
        return provenance


@dataclass(frozen=True, slots=True)
class EditFolder:
    """A recipe and its directions; `sha256` covers both."""

    recipe: Recipe
    directions: Mapping[str, Float32]

    @property
    def sha256(self) -> str:
        """What identifies the edit, whatever the folder is called."""
        digest = hashlib.sha256(self.recipe.model_dump_json().encode())
        for name, direction in sorted(self.directions.items()):
            digest.update(f"{name}\n{direction_sha256(direction)}\n".encode())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What sidecars say of the edit."""
        hashes = {name: direction_sha256(d) for name, d in sorted(self.directions.items())}
        return {
            "kind": "abliteration",
            "effect": "refusals were removed by editing weights",
            "sha256": self.sha256,
            "keep_norms": self.recipe.keep_norms,
            "directions_sha256": hashes,
            "provenance": self.recipe.provenance,
        }

    def edits_of(self, model: Model) -> Edits:
        """The edits of this model's tensors; refuses a model they were not made for."""
        refuse_experts(model)
        tensors = {tensor.info.name: tensor for tensor in model.tensors}
        return Edits(
            {line.tensor: self._edit(line, tensors, model) for line in self.recipe.edits},
            self.record(),
        )

    def _edit(self, line: TensorEdit, tensors: Mapping[str, Tensor], model: Model) -> Edit:
        tensor = tensors.get(line.tensor)
        if tensor is None:
            raise TensorError(f"{line.tensor}: named in {RECIPE_NAME}, not in the checkpoint")
        role, direction = tensor.rule.role, self.directions[line.direction]
        if role not in (*WRITERS, "token_embd"):
            raise TensorError(
                f"{line.tensor}: does not write to the residual stream; o_proj, down_proj and"
                f" embed_tokens can be edited. Correct {RECIPE_NAME}"
            )
        hidden = model.checkpoint.spec.hidden_size
        if direction.shape != (hidden,):
            raise TensorError(
                f"{line.tensor}: direction {line.direction!r} has {direction.size} numbers, the"
                f" model's hidden size is {hidden}; this edit is of another model"
            )
        kind = EmbeddingEdit if role == "token_embd" else RankOneEdit
        return kind(direction, line.strength, self.recipe.keep_norms)


def refuse_experts(model: Model) -> None:
    """Raise UnsupportedError for a mixture of experts: each expert would need its own look."""
    if model.checkpoint.spec.num_experts or any(t.expert is not None for t in model.tensors):
        raise UnsupportedError(
            f"{model.name}: a mixture of experts; abliteration here edits dense models only, and"
            " an edit that left the experts out would do next to nothing"
        )


def read_edit(folder: Path) -> EditFolder:
    """Read and check an EDIT folder."""
    path, stored = folder / RECIPE_NAME, folder / DIRECTIONS_NAME
    try:
        recipe = Recipe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror}; abliterate apply writes EDIT folders"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']}") from error
    directions = {info.name: _read(stored, info) for info in read_header(stored, stored.name)}
    names = [line.tensor for line in recipe.edits]
    for line in recipe.edits:
        if line.direction not in directions:
            raise InputError(f"{path}: direction {line.direction!r} is not in {DIRECTIONS_NAME}")
        if names.count(line.tensor) > 1:
            raise InputError(f"{path}: {line.tensor} is edited twice; one line a tensor")
    return EditFolder(recipe, directions)


def _read(path: Path, info: Any) -> Float32:
    if info.dtype != "F32" or len(info.shape) != 1:
        raise CheckpointError(f"{path}: {info.name}: expected an F32 vector, found {info.dtype}")
    vector = np.fromfile(path, "<f4", info.shape[0], offset=info.offset)
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(norm - 1) < _UNIT_TOLERANCE:
        raise CheckpointError(f"{path}: {info.name}: norm {norm:g}; a direction has norm 1")
    return vector


def write_edit(folder: Path, edit: EditFolder) -> None:
    """Write both files; the recipe leaves first and comes last: it never has others' vectors."""
    text = json.dumps(edit.recipe.model_dump(), indent=2, ensure_ascii=False)
    with writing(folder):
        (folder / RECIPE_NAME).unlink(missing_ok=True)
        write_vectors(folder / DIRECTIONS_NAME, edit.directions)
        write_whole(folder / RECIPE_NAME, f"{text}\n".encode())


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder, and turn what its disk refuses into an OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to: {error.strerror}") from error


def write_vectors(path: Path, arrays: Mapping[str, Any]) -> None:
    """Float32 or float64 arrays as a safetensors file, put in place whole."""
    kinds = {name: "F64" if a.dtype == np.float64 else "F32" for name, a in arrays.items()}
    placed = layout([StoredTensor(n, kinds[n], a.shape) for n, a in arrays.items()])
    data = bytearray(placed.size_bytes)
    data[: len(placed.header)] = placed.header
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, dtype="<f8" if kinds[name] == "F64" else "<f4").tobytes()
        data[placed.offsets[name] : placed.offsets[name] + len(raw)] = raw
    write_whole(path, bytes(data))


def read_vectors(path: Path) -> dict[str, Any]:
    """What `write_vectors` wrote."""
    found = {}
    for info in read_header(path, path.name):
        kind = {"F32": "<f4", "F64": "<f8"}.get(info.dtype)
        if kind is None:
            raise CheckpointError(f"{path}: {info.name}: expected F32 or F64, found {info.dtype}")
        count = int(np.prod(info.shape))
        found[info.name] = np.fromfile(path, kind, count, offset=info.offset).reshape(info.shape)
    return found
