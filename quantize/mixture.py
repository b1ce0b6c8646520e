"""Which tensor gets which ggml type under `Q4_K_M` and its like: the rules of llama-quantize.

A mixture has a default type; the head (or the embedding that doubles as head), some of the value
projections and some of the down projections get a better one. Each row of `MIXTURES` lists, role by
role, the type and the condition under which it applies; the first match wins. The rules are those
of `llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp` (MIT, commit 0c1e570), including its
counters, which run over the tensors in file order. A row that does not divide into the type's
blocks falls back to a type with smaller blocks and is counted, as llama.cpp counts it.

Overrides follow llama-quantize's options. One quirk is kept: a tensor that `--tensor-type` names
does not advance the counters, so it moves the mixture of the tensors after it.

Types come from names, roles and shapes alone; no weight is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from convert.errors import InputError
from convert.gguf import GGML_TYPES
from convert.gguf_plan import GGUFOutput
from convert.model_spec import ModelSpec
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
class _Place:
    """Where a tensor stands: its index among those of its role (or its layer), of how many."""

    index: int
    total: int
    queries_per_kv: int
    experts: int
    importance: bool


_CONDITIONS: dict[str, Callable[[_Place], bool]] = {
    "always": lambda p: True,
    "more bits": lambda p: _more_bits(p.index, p.total),
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
    "8 experts, more bits": lambda p: p.experts == 8 and _more_bits(p.index, p.total),
}


def _more_bits(index: int, total: int) -> bool:
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


_LOW_BIT_V = ("attn_v", "Q4_K", "grouped by 4 or 4 experts")
_EIGHT_EXPERTS = (("attn_v", "Q8_0", "8 experts"), ("attn_k", "Q8_0", "8 experts"))
_EIGHT_EXPERTS_OUTPUT = (*_EIGHT_EXPERTS, ("attn_output", "Q5_K", "8 experts"))
_EIGHT_EXPERTS_LOW = (("attn_k", "Q4_K", "8 experts"), ("attn_output", "Q5_K", "8 experts"))


def _iq1(name: str, file_type: int) -> Mixture:
    rules = (*_low_bit("Q2_K"), ("attn_output", "IQ2_XXS", "always"))
    return Mixture(name, file_type, name, rules, head="Q5_K", embedding="Q2_K")


def _low_bit(better: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *_EIGHT_EXPERTS_LOW,
        _LOW_BIT_V,
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


@dataclass(slots=True)
class _Counters:
    seen: dict[str, int] = field(default_factory=dict)

    def next(self, role: str) -> int:
        self.seen[role] = self.seen.get(role, -1) + 1
        return self.seen[role]


def choose_types(
    spec: ModelSpec,
    mixture: Mixture,
    outputs: Sequence[GGUFOutput],
    *,
    importance: bool = False,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, Choice]:
    """Types by name for every matrix in `outputs`, which must be in llama-quantize's order.

    A type of None means that the tensor keeps the source's dtype.
    """
    matrices = [output for output in outputs if output.is_matrix]
    tied = not any(output.role == "output" for output in matrices)
    values = sum(output.role == "attn_v" for output in matrices)
    counters = _Counters()
    choices: dict[str, Choice] = {}
    for output in matrices:
        choice = _override(mixture, overrides, output)
        if choice is None:
            wanted = _wanted(spec, mixture, output, tied, values, importance, counters, overrides)
            choice = _fit(wanted, output.tensor.shape[-1])
        choices[output.tensor.name] = choice
    return choices


def _override(mixture: Mixture, overrides: Overrides, output: GGUFOutput) -> Choice | None:
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
            fitted = _fit(wanted, columns)
            return Choice(fitted.ggml_type, fitted.instead_of, overridden=True)
    return None


def _wanted(
    spec: ModelSpec,
    mixture: Mixture,
    output: GGUFOutput,
    tied: bool,
    values: int,
    importance: bool,
    counters: _Counters,
    overrides: Overrides,
) -> str:
    role = output.role
    if role == "output" or (role == "token_embd" and tied):
        if overrides.output_type is not None:
            return overrides.output_type
        return _head_type(mixture, output.tensor.shape[-1])
    if mixture.experts is not None:
        return mixture.experts if len(output.tensor.shape) > 2 else mixture.default
    if role == "token_embd":
        return mixture.embedding or mixture.default
    index = counters.next(role)
    if spec.num_experts > 1 and role.startswith("ffn_"):
        index = output.layer or 0
    place = _Place(
        index=index,
        total=values if role == "attn_v" else spec.num_hidden_layers,
        queries_per_kv=spec.num_attention_heads // spec.num_key_value_heads,
        experts=max(spec.num_experts, 1),
        importance=importance,
    )
    wanted = mixture.default
    for rule_role, ggml_type, condition in mixture.rules:
        if rule_role == role and _CONDITIONS[condition](place):
            wanted = ggml_type
            break
    low_bit = _LOW_BIT_V in mixture.rules
    if role == "attn_v" and _is_70b(spec) and not low_bit and wanted in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return wanted


def _head_type(mixture: Mixture, columns: int) -> str:
    if mixture.default == "Q8_0" or columns % GGML_TYPES[mixture.default].block:
        return "Q8_0"
    return mixture.head


def _is_70b(spec: ModelSpec) -> bool:
    """llama.cpp's idea of a 70B: 80 Llama layers with grouped queries."""
    grouped = spec.num_attention_heads != spec.num_key_value_heads
    llama = spec.architecture in ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
    return llama and spec.num_hidden_layers == 80 and grouped


def _fit(wanted: str, columns: int) -> Choice:
    """The wanted type, or what takes its place for rows of this length."""
    if columns % GGML_TYPES[wanted].block == 0:
        return Choice(wanted)
    fallback = FALLBACKS.get(wanted, wanted)
    if columns % GGML_TYPES[fallback].block:
        return Choice("F16", wanted)
    return Choice(fallback, wanted)


def needs_importance(mixture: Mixture, role: str, choice: Choice) -> bool:
    """Whether a tensor cannot be stored so without importance.

    llama-quantize refuses, but for the embedding and the head, where ggml itself may abort.
    """
    if role in ("token_embd", "output"):
        return choice.ggml_type in ABORTS_WITHOUT_IMPORTANCE
    low = mixture.name == "Q2_K_S" and choice.ggml_type == "Q2_K"
    return choice.ggml_type in NEEDS_IMPORTANCE or low


def parse_type(text: str) -> str:
    """A ggml type's name in any case; InputError lists those there are."""
    name = text.upper()
    if name not in GGML_TYPES or name.startswith(("I8", "I16", "I32", "I64", "F64")):
        known = ", ".join(t for t in GGML_TYPES if not re.fullmatch(r"I\d+|F64", t))
        raise InputError(f"{text!r} is not a ggml type; known: {known}")
    return name


def parse_pattern(text: str) -> tuple[str, str]:
    """`PATTERN=TYPE` as llama-quantize takes it: a regular expression, in lower case."""
    pattern, equals, ggml_type = text.rpartition("=")
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"--tensor-type {text!r}: not a regular expression: {error}") from error
    if not equals or not pattern:
        raise InputError(f"--tensor-type {text!r}: expected PATTERN=TYPE, as in attn_v=Q8_0")
    return pattern.lower(), parse_type(ggml_type)
