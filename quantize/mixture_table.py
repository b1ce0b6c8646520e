"""llama.cpp's published types as a table: which role gets which ggml type, and when.

A mixture has a default type; the head (or the embedding that doubles as head), some of the value
projections and some of the down projections get a better one. Each row of `MIXTURES` lists, role by
role, the type and the condition under which it applies; the first match wins. The rules are those
of `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp` (MIT, commit 0c1e570). How the
`Place` of a tensor is counted is in `mixture.py`, what becomes of rows that do not divide into
blocks in `choice.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: its index among those of its role (or its layer), of how many."""

    index: int
    total: int
    queries_per_kv: int
    experts: int
    importance: bool


CONDITIONS: dict[str, Callable[[Place], bool]] = {
    "always": lambda p: True,
    "more bits": lambda p: more_bits(p.index, p.total),
    "first 2": lambda p: p.index < 2,
    "first 4": lambda p: p.index < 4,
    "first sixteenth": lambda p: p.index < p.total // 16,
    "first eighth": lambda p: p.index < p.total // 8,
    "first eighth, imatrix": lambda p: p.importance and p.index < p.total // 8,
    "first eighth, no imatrix": lambda p: not p.importance and p.index < p.total // 8,
    "between the eighths": lambda p: p.total // 8 <= p.index < 7 * p.total // 8,
    "no imatrix": lambda p: not p.importance,
    "grouped by 4": lambda p: p.queries_per_kv >= 4,
    "grouped by 4 or 4 experts": lambda p: p.queries_per_kv >= 4 or p.experts >= 4,
    "8 experts": lambda p: p.experts == 8,
    "8 experts, more bits": lambda p: p.experts == 8 and more_bits(p.index, p.total),
}


def more_bits(index: int, total: int) -> bool:
    """The first and last eighth of the layers, and every third in between."""
    eighth = total // 8
    return index < eighth or index >= 7 * total // 8 or (index - eighth) % 3 == 2


@dataclass(frozen=True, slots=True)
class Mixture:
    """A published type.

    `file_type` is its number in `general.file_type`, `head` the type of the head, `embedding` that
    of an untied embedding (the default's where None), `rules` lists (role, type, condition).
    """

    name: str
    file_type: int
    default: str
    rules: tuple[tuple[str, str, str], ...] = ()
    head: str = "Q6_K"
    embedding: str | None = None
    experts: str | None = None


LOW_BIT_V = ("attn_v", "Q4_K", "grouped by 4 or 4 experts")
_EIGHT_EXPERTS = (("attn_v", "Q8_0", "8 experts"), ("attn_k", "Q8_0", "8 experts"))
_EIGHT_EXPERTS_OUTPUT = (*_EIGHT_EXPERTS, ("attn_output", "Q5_K", "8 experts"))
_EIGHT_EXPERTS_LOW = (("attn_k", "Q4_K", "8 experts"), ("attn_output", "Q5_K", "8 experts"))


def _iq1(name: str, file_type: int) -> Mixture:
    rules = (*_low_bit("Q2_K"), ("attn_output", "IQ2_XXS", "always"))
    return Mixture(name, file_type, name, rules, head="Q5_K", embedding="Q2_K")


def _low_bit(better: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *_EIGHT_EXPERTS_LOW,
        LOW_BIT_V,
        ("attn_v", better, "always"),
        ("ffn_down", better, "first eighth"),
    )


def _plain(name: str, file_type: int) -> Mixture:
    return Mixture(name, file_type, name, _EIGHT_EXPERTS)


MIXTURES = {
    mixture.name: mixture
    for mixture in (
        _plain("Q8_0", 7),
        _plain("Q4_1", 3),
        _plain("Q5_1", 9),
        Mixture(
            "Q4_0", 2, "Q4_0", (*_EIGHT_EXPERTS, ("ffn_down", "Q4_1", "first eighth, imatrix"))
        ),
        Mixture(
            "Q5_0", 8, "Q5_0", (*_EIGHT_EXPERTS, ("ffn_down", "Q5_1", "first eighth, imatrix"))
        ),
        _plain("Q6_K", 18),
        Mixture(
            "Q5_K_M",
            17,
            "Q5_K",
            (
                *_EIGHT_EXPERTS,
                ("attn_v", "Q6_K", "more bits"),
                ("ffn_down", "Q6_K", "more bits"),
            ),
        ),
        Mixture("Q5_K_S", 16, "Q5_K", _EIGHT_EXPERTS),
        Mixture(
            "Q4_K_M",
            15,
            "Q4_K",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q6_K", "more bits"),
                ("ffn_down", "Q6_K", "more bits"),
            ),
        ),
        Mixture(
            "Q4_K_S",
            14,
            "Q4_K",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q5_K", "first 4"),
                ("ffn_down", "Q5_K", "first eighth"),
            ),
        ),
        Mixture(
            "Q3_K_L",
            13,
            "Q3_K",
            (
                *_EIGHT_EXPERTS,
                ("attn_v", "Q5_K", "always"),
                ("ffn_down", "Q5_K", "always"),
                ("attn_output", "Q3_K", "8 experts"),
                ("attn_output", "Q5_K", "always"),
            ),
        ),
        Mixture(
            "Q3_K_M",
            12,
            "Q3_K",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q5_K", "first 2"),
                ("attn_v", "Q4_K", "always"),
                ("ffn_down", "Q5_K", "first sixteenth"),
                ("ffn_down", "Q4_K", "always"),
                ("attn_output", "Q4_K", "always"),
            ),
        ),
        Mixture("Q3_K_S", 11, "Q3_K", _EIGHT_EXPERTS_OUTPUT),
        Mixture(
            "Q2_K",
            10,
            "Q2_K",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q4_K", "grouped by 4"),
                ("attn_v", "Q3_K", "always"),
                ("ffn_down", "Q3_K", "always"),
                ("attn_output", "Q3_K", "always"),
            ),
        ),
        Mixture(
            "Q2_K_S",
            21,
            "Q2_K",
            (
                *_EIGHT_EXPERTS,
                ("attn_v", "Q4_K", "grouped by 4"),
                ("ffn_down", "Q4_K", "first eighth"),
            ),
        ),
        Mixture(
            "IQ4_XS",
            30,
            "IQ4_XS",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q5_K", "grouped by 4"),
                ("ffn_down", "Q5_K", "first eighth, no imatrix"),
            ),
        ),
        Mixture(
            "IQ4_NL",
            25,
            "IQ4_NL",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q5_K", "grouped by 4"),
                ("ffn_down", "Q5_K", "first eighth, no imatrix"),
            ),
        ),
        Mixture(
            "IQ3_M",
            27,
            "IQ3_S",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q4_K", "always"),
                ("attn_output", "Q4_K", "always"),
                ("ffn_down", "Q4_K", "first eighth"),
                ("ffn_down", "Q4_K", "8 experts, more bits"),
            ),
        ),
        Mixture(
            "IQ3_S",
            26,
            "IQ3_S",
            (*_EIGHT_EXPERTS_OUTPUT, ("attn_v", "Q4_K", "grouped by 4")),
        ),
        Mixture(
            "IQ3_XS",
            22,
            "IQ3_S",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q4_K", "grouped by 4"),
                ("attn_k", "IQ3_XXS", "always"),
                ("attn_q", "IQ3_XXS", "always"),
                ("ffn_gate", "IQ3_XXS", "between the eighths"),
                ("ffn_up", "IQ3_XXS", "between the eighths"),
            ),
        ),
        Mixture(
            "IQ3_XXS",
            23,
            "IQ3_XXS",
            (
                *_EIGHT_EXPERTS_OUTPUT,
                ("attn_v", "Q4_K", "grouped by 4"),
                ("attn_v", "IQ3_S", "no imatrix"),
                ("attn_k", "IQ2_S", "always"),
                ("attn_q", "IQ2_S", "always"),
                ("attn_output", "IQ3_S", "always"),
                ("ffn_down", "Q4_K", "first eighth, no imatrix"),
                ("ffn_down", "Q3_K", "no imatrix"),
            ),
            head="Q5_K",
            embedding="IQ3_S",
        ),
        *(
            Mixture(
                name,
                file_type,
                default,
                (*_low_bit("IQ3_S"), ("attn_output", "IQ3_S", "always")),
                head="Q5_K",
                embedding="IQ3_S",
            )
            for name, file_type, default in (("IQ2_S", 28, "IQ2_XS"), ("IQ2_M", 29, "IQ2_S"))
        ),
        *(
            Mixture(name, file_type, name, _low_bit("Q2_K"), head="Q5_K", embedding="Q2_K")
            for name, file_type in (("IQ2_XS", 20), ("IQ2_XXS", 19))
        ),
        _iq1("IQ1_S", 24),
        _iq1("IQ1_M", 31),
        *(
            Mixture(name, file_type, name, _EIGHT_EXPERTS, embedding="Q4_K")
            for name, file_type in (("TQ1_0", 36), ("TQ2_0", 37))
        ),
        Mixture("MXFP4_MOE", 38, "Q8_0", head="Q8_0", experts="MXFP4"),
    )
}
