"""The sections of a recipe: what may be written under each key, each value checked by itself.

In: what YAML holds. Out: frozen pydantic models; an unknown key, type or number is a mistake that
names the word which was probably meant. What holds between sections is in `recipe.py`.
"""

from __future__ import annotations

import difflib
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
from convert.size import parse_size
from quantize.gguf_targets import Options as GgufOptions
from quantize.job import planners
from quantize.own_mixture import SUFFIXES
from quantize.scaled import NUMERICS
from verify.abliteration.replies import Limits
from verify.release.steps import QUARANTINE

_LIMITS = Limits()
Name = Annotated[
    str,
    Field(
        pattern=r"^\w[\w.+-]*$", max_length=120, json_schema_extra={"not": {"const": QUARANTINE}}
    ),
    AfterValidator(lambda value: _is_no_side_folder(value)),
]
HubId = Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]


class Section(BaseModel):
    """Unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Options(Section):
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


class Licence(Section):
    """The base model's licence; `files` are texts to ship where the source does not hold them."""

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()


class Gates(Section):
    """What is asked, and under which gate: the options of `hermes-quant verify`."""

    suite: Path | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    gate: Path | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 256
    kv_type: Literal["f16", "q8_0", "q4_0"] = "f16"


class Fit(Section):
    """The devices of the card's table."""

    devices: tuple[str, ...] = ()
    context: str | None = None


class Signing(Section):
    """`key`: a private EC key (PEM); `keyless`: the identity of a CI job, by Sigstore."""

    method: Literal["key", "keyless"]
    key: Path | None = None


class Publish(Section):
    """Where releases go: `hub`, a folder, or any URL that fsspec knows (`s3://bucket/path`)."""

    to: str = "hub"
    owner: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    repositories: Literal["per-format", "one"] = "per-format"
    private: bool = True
    create_pr: bool = False


class Card(Section):
    """What the model card says beyond what is known; `sections` are Markdown files for its end."""

    about: str = ""
    sections: tuple[Path, ...] = ()
    tags: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    quantized_by: str | None = None


Part = Annotated[float, Field(ge=0, le=1)]


class EditLimits(Section):
    """What edited artifacts must keep to: the limits of `hermes-quant abliterate verify`."""

    before: Part = _LIMITS.before
    refusals: Part = _LIMITS.refusals
    compliance: Part = _LIMITS.compliance
    harmless_drop: Part = _LIMITS.harmless_drop
    degenerate: Part = _LIMITS.degenerate
    kl: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _LIMITS.kl
    control: Part = _LIMITS.control

    def stated(self) -> Limits:
        """The same as the gate takes them."""
        return Limits(**self.model_dump())


class Abliteration(Section):
    """Which artifacts are made through an edit too, and how their refusals are measured.

    `edit` and `controls` are folders that `abliterate apply` writes; a control's directions are
    random. `refused` and `harmless` are conversations with their right answers; `limit` takes so
    many of each.
    """

    edit: Path
    artifacts: Annotated[tuple[str, ...], Field(json_schema_extra={"minItems": 1})]
    name: Name | None = None
    refused: Path
    harmless: Path
    limit: Annotated[int, Field(ge=1)] | None = None
    controls: tuple[Path, ...] = ()
    limits: EditLimits = EditLimits()

    @field_validator("artifacts")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("expected at least one artifact, and none of them twice")
        return value


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
