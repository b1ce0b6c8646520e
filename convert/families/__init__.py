"""The registry of model families; `rules.py` says what a family is. One file, one line a family."""

from __future__ import annotations

from convert.errors import UnsupportedError
from convert.families.llama import LLAMA
from convert.families.mistral import MISTRAL
from convert.families.mixtral import MIXTRAL
from convert.families.qwen3 import QWEN3
from convert.families.rules import Family
from convert.families.seed_oss import SEED_OSS
from convert.model_spec import ModelSpec

FAMILIES = (LLAMA, MISTRAL, MIXTRAL, QWEN3, SEED_OSS)


def family_of(spec: ModelSpec) -> Family:
    """The family of an architecture; UnsupportedError lists those that are known."""
    for family in FAMILIES:
        if spec.architecture in family.architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UnsupportedError(f"architecture {spec.architecture!r} is not supported; known: {known}")
