"""Which tensor gets which ggml type under `Q4_K_M` and its like: llama-quantize's rules.

A mixture has a default type; the head (or the embedding that doubles as head), some of the value
projections and some of the down projections get a better one. The rules are those of
`llama_tensor_get_type` in llama.cpp's `src/llama-quant.cpp` (MIT, commit 0c1e570), including its
counters, which run over the tensors in file order. A row that does not divide into the type's
blocks falls back to a type with smaller blocks and is counted, as llama.cpp counts it.

Tensor types come from names, roles and shapes alone; no weight is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convert.gguf import GGML_TYPES
from convert.gguf_plan import GGUFOutput
from convert.model_spec import ModelSpec

FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""256-value block types to what stands in for them where rows divide by 32 only."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A published type: its number in `general.file_type`, its default, and whether it mixes.

    `more_bits` is the type of the layers that `_use_more_bits` picks.
    """

    name: str
    file_type: int
    default: str
    more_bits: str | None = None


MIXTURES = {
    mixture.name: mixture
    for mixture in (
        Mixture("Q8_0", 7, "Q8_0"),
        Mixture("Q6_K", 18, "Q6_K"),
        Mixture("Q5_K_M", 17, "Q5_K", more_bits="Q6_K"),
        Mixture("Q4_K_M", 15, "Q4_K", more_bits="Q6_K"),
    )
}


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of one tensor, and the type it fell back from, if it did."""

    ggml_type: str
    instead_of: str | None = None


def choose_types(
    spec: ModelSpec, mixture: Mixture, outputs: Sequence[GGUFOutput]
) -> dict[str, Choice]:
    """Types by name for every matrix in `outputs`, which must be in llama-quantize's order."""
    matrices = [output for output in outputs if output.is_matrix]
    tied = not any(output.role == "output" for output in matrices)
    seen: dict[str, int] = {}
    values = sum(output.role == "attn_v" for output in matrices)
    total = {"attn_v": values, "ffn_down": spec.num_hidden_layers}
    choices = {}
    for output in matrices:
        index = seen[output.role] = seen.get(output.role, -1) + 1
        if output.role == "output" or (output.role == "token_embd" and tied):
            wanted = _head_type(mixture, output.tensor.shape[-1])
        elif output.role in total:
            wanted = _mixed_type(spec, mixture, output.role, index, total[output.role])
        else:
            wanted = mixture.default
        choices[output.tensor.name] = _fit(wanted, output.tensor.shape[-1])
    return choices


def _head_type(mixture: Mixture, columns: int) -> str:
    if mixture.default == "Q8_0" or columns % GGML_TYPES[mixture.default].block:
        return "Q8_0"
    return "Q6_K"


def _mixed_type(spec: ModelSpec, mixture: Mixture, role: str, index: int, total: int) -> str:
    wanted = mixture.default
    if mixture.more_bits and _use_more_bits(index, total):
        wanted = mixture.more_bits
    if role == "attn_v" and _is_70b(spec) and wanted == "Q4_K":
        return "Q5_K"
    return wanted


def _use_more_bits(index: int, total: int) -> bool:
    """The first and last eighth of the layers, and every third in between."""
    eighth = total // 8
    return index < eighth or index >= 7 * total // 8 or (index - eighth) % 3 == 2


def _is_70b(spec: ModelSpec) -> bool:
    """llama.cpp's idea of a 70B: 80 Llama layers with grouped queries."""
    grouped = spec.num_attention_heads != spec.num_key_value_heads
    return spec.model_type == "llama" and spec.num_hidden_layers == 80 and grouped


def _fit(wanted: str, columns: int) -> Choice:
    """The wanted type, or what takes its place for rows of this length."""
    if columns % GGML_TYPES[wanted].block == 0:
        return Choice(wanted)
    fallback = FALLBACKS.get(wanted, wanted)
    if columns % GGML_TYPES[fallback].block:
        return Choice("F16", wanted)
    return Choice(fallback, wanted)
