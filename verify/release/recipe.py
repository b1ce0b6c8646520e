"""The recipe of a release: what a person writes in YAML, checked before anything is read or made.

In: a YAML file. Out: a `Recipe` and the folder it lies in, to which every path in it is relative
(`ReadRecipe`). Unknown keys, types and numerics are mistakes, named with their line and the word
that was probably meant. `json_schema` is the same for an editor. The sections are in `sections.py`.

An artifact is a type (`- Q4_K_M`) or a type with options (`- {to: Q4_K_M, imatrix: imatrix.gguf}`);
options that are the same for all stand once under `options`. Artifacts with equal options are made
from one read of the checkpoint. What stands under `abliteration` is made a second time, through an
edit, and is an artifact of its own: `Wanted` is one of either kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from convert.errors import InputError
from convert.hub import is_on_disk, parse_hub_id
from convert.job import EDITED
from convert.yaml_file import read_yaml
from quantize.calibration import IMATRIX
from quantize.compressed_table import CALIBRATED, ONESHOT
from quantize.scaled import NUMERICS
from verify.release.sections import (
    Abliteration,
    ArtifactSpec,
    Card,
    Fit,
    Gates,
    HubId,
    Licence,
    Listed,
    Name,
    Options,
    Publish,
    Section,
    Signing,
)


class Recipe(Section):
    """The whole file."""

    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    name: Name
    base_model: HubId | None = None
    relation: Literal["quantized", "finetune"] = "quantized"
    metadata: dict[str, Any] = Field(default_factory=dict)
    licence: Licence = Licence()
    card: Card = Card()
    options: Options = Options()
    artifacts: Annotated[tuple[Listed, ...], Field(json_schema_extra={"minItems": 1})]
    gates: Gates = Gates()
    fit: Fit = Fit()
    signing: Signing | None = None
    publish: Publish = Publish()
    abliteration: Abliteration | None = None

    @field_validator("artifacts")
    @classmethod
    def _no_two_alike(cls, value: tuple[ArtifactSpec, ...]) -> tuple[ArtifactSpec, ...]:
        if not value:
            raise ValueError("expected at least one artifact")
        seen: set[str] = set()
        for artifact in value:
            if artifact.target in seen:
                raise ValueError(f"{artifact.target} is asked for twice; both would have one name")
            seen.add(artifact.target)
        return value

    @model_validator(mode="after")
    def _can_be_made(self) -> Self:
        """What would end a build after hours is said before it begins."""
        for artifact in self.artifacts:
            options = self.options_of(artifact)
            if artifact.to in (*CALIBRATED, *ONESHOT) and options.calibration is None:
                raise ValueError(f"{artifact.to} needs a calibration; set options.calibration")
            if artifact.to in ONESHOT and options.numerics != NUMERICS[0]:
                raise ValueError(
                    f"numerics {options.numerics} is not for {artifact.to}, which llm-compressor"
                    f" computes; give it {NUMERICS[0]}"
                )
        return self

    @field_validator("abliteration")
    @classmethod
    def _of_plain_artifacts(
        cls, value: Abliteration | None, info: ValidationInfo
    ) -> Abliteration | None:
        if value is None or "artifacts" not in info.data:
            return value
        plain = [artifact.to for artifact in info.data["artifacts"] if artifact.to]
        for target in value.artifacts:
            if target in ONESHOT:
                raise ValueError(
                    f"{target} reads the checkpoint itself, which an edit does not change; release"
                    " the edited checkpoint (SAFETENSORS), and this from a recipe of its own"
                )
            if target not in plain:
                raise ValueError(
                    f"{target} is not among the artifacts ({', '.join(plain)}); what is edited is"
                    " compared with the same type unedited, so ask for both"
                )
        if value.name == info.data.get("name"):
            raise ValueError("name: expected another one than that of the unedited release")
        return value

    def options_of(self, artifact: ArtifactSpec) -> Options:
        """The artifact's own options laid over those of all."""
        own = {k: getattr(artifact, k) for k in artifact.model_fields_set & _OPTIONS}
        return self.options.model_copy(update=own)


_OPTIONS = set(Options.model_fields)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One artifact of a recipe: as it is listed, or made through the edit."""

    spec: ArtifactSpec
    edited: bool = False

    @property
    def target(self) -> str:
        """What it is called in messages and by `--only`."""
        return f"{EDITED}-{self.spec.target}" if self.edited else self.spec.target

    @property
    def unedited(self) -> Wanted:
        """The one that an edited artifact is compared with."""
        return Wanted(self.spec)


@dataclass(frozen=True, slots=True)
class ReadRecipe:
    """A recipe, and the folder that its paths are relative to."""

    recipe: Recipe
    folder: Path
    reference: str
    """The checkpoint: a folder, or a hub id with its revision."""
    names_folder: bool
    """Whether the recipe's own source is a folder, whose name is nobody else's business."""

    def path(self, stated: Path | None) -> Path | None:
        """A path of the recipe as it can be opened from here."""
        return None if stated is None else self.folder / stated

    def imatrix(self, options: Options) -> Path | None:
        """The importance matrix of the GGUF types: the stated one, else the calibration's."""
        if options.imatrix is None and options.calibration is not None:
            return self.folder / options.calibration / IMATRIX
        return self.path(options.imatrix)

    def wanted(self) -> list[Wanted]:
        """All artifacts: the plain ones, then the edited ones."""
        edit, listed = self.recipe.abliteration, self.recipe.artifacts
        edited = [a for a in listed if edit and a.target in edit.artifacts]
        return [*(Wanted(a) for a in listed), *(Wanted(a, edited=True) for a in edited)]

    def name_of(self, *, edited: bool) -> str:
        """What the names of the plain or of the edited files begin with."""
        edit = self.recipe.abliteration
        if not edited or edit is None:
            return self.recipe.name
        return edit.name or f"{self.recipe.name}-{EDITED}"

    @property
    def abliteration(self) -> Abliteration:
        """The section, where an edited artifact was asked for."""
        assert self.recipe.abliteration is not None
        return self.recipe.abliteration

    @property
    def base_model(self) -> str:
        """The model this is made from, as the hub knows it."""
        return self.recipe.base_model or self.recipe.source


def read_recipe(path: Path, source: str | None = None) -> ReadRecipe:
    """The recipe at `path`; `source` stands in for its source (the weights may lie elsewhere)."""
    recipe = read_yaml(path, Recipe)
    local = path.parent / recipe.source
    on_disk = is_on_disk(str(local))
    if not on_disk:
        parse_hub_id(recipe.source)
    if on_disk and recipe.revision:
        raise InputError(f"{path}: revision: {recipe.source} is a folder, which has none")
    if on_disk and recipe.base_model is None:
        raise InputError(
            f"{path}: base_model: missing; the source is a folder, and the card must name the model"
            " on the hub (owner/name)"
        )
    stated = f"{recipe.source}@{recipe.revision}" if recipe.revision else recipe.source
    return ReadRecipe(recipe, path.parent, source or (str(local) if on_disk else stated), on_disk)


def json_schema() -> dict[str, Any]:
    """The recipe's JSON schema, for editors."""
    schema = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
