"""The recipe of a release: what a person writes in YAML, checked before anything is read or made.

In: a YAML file. Out: a `Recipe` and the folder it lies in, to which every path in it is relative
(`ReadRecipe`). Unknown keys, types and numerics are mistakes, named with their line and the word
that was probably meant. `json_schema` is the same for an editor.

An artifact is a type (`- Q4_K_M`) or a type with options (`- {to: Q4_K_M, imatrix: imatrix.gguf}`);
options that are the same for all stand once under `options`. Artifacts with equal options are made
from one read of the checkpoint. An abliterated release is one of the edited checkpoint, which
`quantize --abliterate EDIT --to SAFETENSORS` makes: that folder is then the source.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from convert.errors import InputError
from convert.hub import is_on_disk, parse_hub_id
from convert.size import parse_size
from convert.yaml_file import read_yaml
from quantize.calibration import IMATRIX
from quantize.gguf_targets import Options as GgufOptions
from quantize.job import planners
from quantize.own_mixture import SUFFIXES
from quantize.scaled import NUMERICS
from verify.release.steps import QUARANTINE

SIGNING_KEY = "HERMES_QUANT_SIGNING_KEY"
"""The environment variable that names the private key where the recipe does not."""
Name = Annotated[
    str,
    Field(
        pattern=r"^\w[\w.+-]*$", max_length=120, json_schema_extra={"not": {"const": QUARANTINE}}
    ),
    AfterValidator(lambda value: _is_no_side_folder(value)),
]
HubId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(_Section):
    """How artifacts are made: the options of `hermes-quant quantize`."""

    imatrix: Path | None = None
    tensor_types: tuple[str, ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False
    split_max_size: str | None = None
    numerics: str = NUMERICS[0]
    calibration: Path | None = None
    kv_cache_fp8: bool = False

    @field_validator("numerics")
    @classmethod
    def _known_numerics(cls, value: str) -> str:
        return _known(value, NUMERICS, "numerics")

    @field_validator("split_max_size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        return None if value is None else _is_size(value)


class ArtifactSpec(Options):
    """One artifact: a type or the file of a mixture (`to`), or the best mixture of a size."""

    to: str | None = None
    fit_bytes: str | None = None
    bits_per_weight: Annotated[float, Field(ge=1, le=32)] | None = None

    @field_validator("to")
    @classmethod
    def _known_type(cls, value: str | None) -> str | None:
        if value is None or value.endswith(SUFFIXES):
            return value
        return _known(value, list(planners(GgufOptions())), "type")

    @field_validator("fit_bytes")
    @classmethod
    def _fit_size(cls, value: str | None) -> str | None:
        return None if value is None else _is_size(value)

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(x is not None for x in (self.to, self.fit_bytes, self.bits_per_weight)) != 1:
            raise ValueError("give exactly one of to, fit_bytes and bits_per_weight")
        return self

    @property
    def target(self) -> str:
        """What it is called in messages and by `--only`."""
        return str(self.to or self.fit_bytes or f"{self.bits_per_weight} bits per weight")


def _as_artifact(value: Any) -> Any:
    return {"to": value} if isinstance(value, str) else value


Listed = Annotated[
    ArtifactSpec, BeforeValidator(_as_artifact, json_schema_input_type=str | ArtifactSpec)
]


class Licence(_Section):
    """The base model's licence; `files` are texts to ship where the source does not hold them."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()


class Gates(_Section):
    """What is asked, and under which gate: the options of `hermes-quant verify`."""

    suite: Path | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    gate: Path | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"


class Fit(_Section):
    """The devices of the card's table."""

    devices: tuple[str, ...] = ()
    context: str | None = None


class Signing(_Section):
    """`key`: a private EC key (PEM); `keyless`: the identity of a CI job, by Sigstore."""

    method: Literal["key", "keyless"]
    key: Path | None = None


class Publish(_Section):
    """Where releases go: `hub`, a folder, or any URL that fsspec knows (`s3://bucket/path`)."""

    to: str = "hub"
    owner: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    repositories: Literal["per-format", "one"] = "per-format"
    private: bool = True
    create_pr: bool = False


class Card(_Section):
    """What the model card says beyond what is known; `sections` are Markdown files for its end."""

    about: str = ""
    sections: tuple[Path, ...] = ()
    tags: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    quantized_by: str | None = None


class Recipe(_Section):
    """The whole file."""

    source: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    name: Name
    base_model: HubId | None = None
    relation: Literal["quantized", "finetune"] = "quantized"
    metadata: dict[str, Any] = {}
    licence: Licence = Licence()
    card: Card = Card()
    options: Options = Options()
    artifacts: Annotated[tuple[Listed, ...], Field(json_schema_extra={"minItems": 1})]
    gates: Gates = Gates()
    fit: Fit = Fit()
    signing: Signing | None = None
    publish: Publish = Publish()

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

    def options_of(self, artifact: ArtifactSpec) -> Options:
        """The artifact's own options laid over those of all."""
        own = {k: getattr(artifact, k) for k in artifact.model_fields_set & _OPTIONS}
        return self.options.model_copy(update=own)


_OPTIONS = set(Options.model_fields)


def _known(value: str, words: Any, what: str) -> str:
    if value in words:
        return value
    near = difflib.get_close_matches(value.upper() if what == "type" else value, words, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}{hint} (known: {', '.join(words)})")


def _is_no_side_folder(value: str) -> str:
    """A repository of that name would be looked past by `release check`."""
    if value == QUARANTINE:
        raise ValueError(f"{value!r} is where a build lays aside what did not pass")
    return value


def _is_size(value: str) -> str:
    try:
        parse_size(value)
    except InputError as error:
        raise ValueError(str(error)) from error
    return value


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
