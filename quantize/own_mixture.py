"""One's own mixture, as a YAML file: which role gets which ggml type.

    name: AGENT            # capitals, digits and _; the file is <model>-AGENT.gguf
    default: Q4_K          # every matrix that nothing below names
    roles:
      attn_v: Q6_K
      ffn_down: Q5_K
      output: Q6_K         # in a model with tied embeddings, the embedding, which is its head
    layers:                # goes before roles; the first rule that holds wins
      - {first: 2, last: 2, type: Q8_0}

Unlike the published mixtures it counts nothing: a tensor's type follows from its role and its layer
alone. Rows that do not divide into a type's blocks fall back as they do in llama-quantize. The
header's `general.file_type` is the number that llama.cpp guesses where a file states none: that of
the commonest type among the matrices.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from convert.errors import InputError
from convert.families.rules import LINEAR_ROLES
from convert.gguf_plan import GGUFOutput
from convert.model import FLOAT_FILE_TYPES
from convert.yaml_file import read_yaml
from quantize.choice import NO_OVERRIDES, Choice, Overrides, fit, override, parse_type
from quantize.compressed_table import KNOWN
from quantize.mixture_table import MIXTURES
from quantize.size_target import SIZE_PREFIXES

ROLES = (*LINEAR_ROLES, "token_embd", "output")
SUFFIXES = (".yaml", ".yml")
_FILE_TYPES = {
    **FLOAT_FILE_TYPES,
    **{name.removesuffix("_MOE"): MIXTURES[name].file_type for name in MIXTURES},
    **{name: MIXTURES[f"{name}_M"].file_type for name in ("Q3_K", "Q4_K", "Q5_K")},
}
"""ggml type -> the file type that llama.cpp takes for a file in which this type is commonest."""


def _type(text: str) -> str:
    try:
        return parse_type(text)
    except InputError as error:
        raise ValueError(str(error)) from error


def _role(text: str) -> str:
    if text not in ROLES:
        near = difflib.get_close_matches(text, ROLES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{text!r} is not a role{hint} (roles: {', '.join(ROLES)})")
    return text


GgmlType = Annotated[str, AfterValidator(_type)]
Role = Annotated[str, AfterValidator(_role)]


class LayerRule(BaseModel):
    """The type of every matrix in the first and the last layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: GgmlType
    first: int = Field(default=0, ge=0)
    last: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_a_layer(self) -> LayerRule:
        if not self.first and not self.last:
            raise ValueError("names no layer; give first, last or both")
        return self

    def holds(self, layer: int, layers: int) -> bool:
        """Whether the rule covers layer `layer` (from 0) of `layers`."""
        return layer < self.first or layer >= layers - self.last


class OwnMixture(BaseModel):
    """What the file says."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Z0-9_]{1,40}$")
    default: GgmlType
    roles: dict[Role, GgmlType] = {}
    layers: tuple[LayerRule, ...] = ()

    @model_validator(mode="after")
    def _has_its_own_name(self) -> OwnMixture:
        taken = self.name in (*MIXTURES, *FLOAT_FILE_TYPES, *KNOWN)
        if taken or self.name.startswith(SIZE_PREFIXES):  # one of two targets would be dropped
            raise ValueError(f"name: {self.name} is another target's; choose another")
        return self


def read_own_mixture(path: Path) -> OwnMixture:
    """The mixture in a YAML file; InputError names the line of a mistake."""
    return read_yaml(path, OwnMixture)


def choose_own_types(
    mixture: OwnMixture, outputs: Sequence[GGUFOutput], overrides: Overrides = NO_OVERRIDES
) -> dict[str, Choice]:
    """Types by name for every matrix in `outputs`; None keeps the source's dtype."""
    matrices = [output for output in outputs if output.is_matrix]
    tied = not any(output.role == "output" for output in matrices)
    layers = 1 + max((output.layer for output in matrices if output.layer is not None), default=0)
    choices: dict[str, Choice] = {}
    for output in matrices:
        wanted = _wanted(mixture, output, tied, layers)
        choice = override(overrides, output) or fit(wanted, output.tensor.shape[-1])
        choices[output.tensor.name] = choice
    return choices


def _wanted(mixture: OwnMixture, output: GGUFOutput, tied: bool, layers: int) -> str:
    if output.layer is not None:
        for rule in mixture.layers:
            if rule.holds(output.layer, layers):
                return rule.type
    role = output.role
    if tied and role == "token_embd" and "output" in mixture.roles:
        role = "output"
    return mixture.roles.get(role, mixture.default)


def commonest_file_type(outputs: Sequence[GGUFOutput], choices: Mapping[str, Choice]) -> int:
    """`general.file_type` as llama.cpp guesses it: by the type that most matrices have."""
    dtypes = {output.tensor.name: output.tensor.dtype for output in outputs}
    counts = Counter(choice.ggml_type or dtypes[name] for name, choice in choices.items())
    return _FILE_TYPES[counts.most_common(1)[0][0]]
