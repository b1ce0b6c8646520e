"""The ggml type of one tensor: what its rows allow, what an option says, what it needs.

A row that does not divide into the blocks of the wanted type falls back to a type with smaller
blocks, as in llama-quantize. Overrides are llama-quantize's options; a pattern is a regular
expression searched in the GGUF name, and the first that matches wins. Some types cannot be made, or
are refused by llama-quantize, without an importance matrix. Which type is *wanted* is the business
of a mixture: a published one (`mixture.py`), one's own (`own_mixture.py`), or one that is measured
to fit a size (`size_target.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from convert.errors import InputError
from convert.gguf import GGML_TYPES
from convert.gguf_plan import GGUFOutput
from quantize.ggml import ABORTS_WITHOUT_IMPORTANCE

FALLBACKS = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
"""256-value block types to what stands in for them where rows divide by 32 only."""

NEEDS_IMPORTANCE = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
"""Types that llama-quantize refuses without an imatrix, outside the embedding and the head."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """llama-quantize's options over a mixture: types by name pattern, for the head, the embedding.

    A pattern is a regular expression searched in the GGUF name; the first that matches wins.
    """

    patterns: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False


NO_OVERRIDES = Overrides()


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of one tensor, the type it fell back from, and whether an option named it."""

    ggml_type: str | None
    instead_of: str | None = None
    overridden: bool = False


def fit(wanted: str, columns: int) -> Choice:
    """The wanted type, or what takes its place for rows of this length."""
    if columns % GGML_TYPES[wanted].block == 0:
        return Choice(wanted)
    fallback = FALLBACKS.get(wanted, wanted)
    if columns % GGML_TYPES[fallback].block:
        return Choice("F16", wanted)
    return Choice(fallback, wanted)


def override(overrides: Overrides, output: GGUFOutput) -> Choice | None:
    """What the options say of this tensor; None where they say nothing."""
    name, columns = output.tensor.name, output.tensor.shape[-1]
    named = {"token_embd": overrides.embedding_type, "output": overrides.output_type}
    if output.role == "output" and overrides.leave_output:
        return Choice(None, overridden=True)
    if (wanted := named.get(output.role)) is not None:
        if columns % GGML_TYPES[wanted].block:
            raise InputError(
                f"{name}: {columns} columns do not divide into blocks of {wanted}"
                f" ({GGML_TYPES[wanted].block})"
            )
        return Choice(wanted, overridden=True)
    for pattern, wanted in overrides.patterns:
        if re.search(pattern, name):
            fitted = fit(wanted, columns)
            return Choice(fitted.ggml_type, fitted.instead_of, overridden=True)
    return None


def needs_importance(role: str, ggml_type: str | None) -> bool:
    """Whether a tensor cannot be stored so without importance.

    llama-quantize refuses, but for the embedding and the head, where ggml itself may abort.
    """
    if role in ("token_embd", "output"):
        return ggml_type in ABORTS_WITHOUT_IMPORTANCE
    return ggml_type in NEEDS_IMPORTANCE


def parse_type(text: str) -> str:
    """A ggml type's name in any case; InputError lists those there are."""
    name = text.upper()
    if name not in GGML_TYPES or name.startswith(("I8", "I16", "I32", "I64", "F64")):
        known = ", ".join(t for t in GGML_TYPES if not re.fullmatch(r"I\d+|F64", t))
        raise InputError(f"{text!r} is not a ggml type; known: {known}")
    return name


def parse_pattern(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE` as llama-quantize takes it: a regular expression, in lower case."""
    given, equals, ggml_type = text.rpartition("=")
    pattern = given.lower()  # which may make it another one, or none
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"--tensor-type {text!r}: not a regular expression: {error}") from error
    if not equals or not pattern:
        raise InputError(f"--tensor-type {text!r}: expected PATTERN=TYPE, as in attn_v=Q8_0")
    return pattern, parse_type(ggml_type)
