"""The gate: what an artifact may lose, by the name of its type, from a file that a person can edit.

In: `--gate FILE`, else `prompts/gate.yaml` of the reference, else the defaults in this package.
Out: a `Gate`, which answers with the `Thresholds` of a type. A file replaces the defaults as a
whole, so that what applied can be read in one place; its last class must be for every other type
("*").

`equality` is how equal calls must be to count as the same: json unless the file says otherwise.
`drops.same_json` bounds what differs from the reference, not what is wrong.

The defaults and their sources are explained in docs/gates.md. A number of zero would never be
reached by any number of prompts, so margins lie between 0 and 1, both left out. `kl` is in nats a
token and has no upper end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from convert.errors import InputError
from convert.yaml_file import read_yaml
from verify.equality import Tier
from verify.suite import FOLDER

FILE_NAME = "gate.yaml"
DEFAULTS = Path(__file__).with_name(FILE_NAME)
EVERY_TYPE = "*"
WIDER = 3
Share = Annotated[float, Field(gt=0, lt=1)]


class Drops(BaseModel):
    """The largest drop of the share of right answers, by check."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tool_calls: Share
    lost_calls: Share
    spurious_calls: Share
    malformed_calls: Share
    portability: Share
    json_mode: Share
    same_json: Share
    wrong_refusals: Share
    missing_refusals: Share


class Thresholds(BaseModel):
    """One class of types and what is asked of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    types: tuple[str, ...] = Field(min_length=1)
    same_calls: Share
    kl: float = Field(gt=0, allow_inf_nan=False)
    same_trigger: Share
    equality: Literal["json", "numeric", "schema default", "bfcl"] = "json"
    drops: Drops

    @property
    def tier(self) -> Tier:
        """The loosest tier in which two sets of calls count as equal."""
        return Tier(self.equality)

    @property
    def wide_kl(self) -> float:
        """The limit for one part of the replies and for the one long text, which have few tokens.

        A wrong rope base costs the long text more than 1 nat a token.
        """
        return WIDER * self.kl


class Gate(BaseModel):
    """Classes in order; `note` is a sentence that every report under this gate must carry."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    note: str = ""
    classes: tuple[Thresholds, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if EVERY_TYPE not in self.classes[-1].types:
            raise ValueError('the last class must be for every other type: types: ["*"]')
        seen: set[str] = set()
        for listed in self.classes:
            twice = seen & set(listed.types)
            if twice:
                raise ValueError(f"{sorted(twice)[0]} is in two classes; the first would win")
            seen.update(listed.types)
        return self

    def of(self, artifact_type: str) -> Thresholds:
        """What is asked of this type."""
        for listed in self.classes:
            if artifact_type in listed.types or EVERY_TYPE in listed.types:
                return listed
        raise AssertionError("a gate ends with a class for every type")


def read_gate(path: Path | None, reference: Path | None = None) -> Gate:
    """The gate at `path`, else the one with the reference's prompts, else the defaults.

    The note of the one with the reference's prompts speaks of the reference, and stays with it
    under any gate. Raises InputError with file and line for what is no gate.
    """
    if path is not None and not path.is_file():
        raise InputError(f"{path}: not found; --gate takes a YAML file, see docs/gates.md")
    beside = reference / FOLDER / FILE_NAME if reference is not None else None
    own = read_yaml(beside, Gate) if beside is not None and beside.is_file() else None
    if path is None:
        return own or read_yaml(DEFAULTS, Gate)
    given = read_yaml(path, Gate)
    notes = [gate.note for gate in (given, own) if gate is not None and gate.note]
    return given.model_copy(update={"note": " ".join(dict.fromkeys(notes))})
