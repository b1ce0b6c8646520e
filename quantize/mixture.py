"""Which tensor gets which ggml type under `Q4_K_M` and its like: the rules of llama-quantize.

The table is `mixture_table.py`; here its conditions meet a model. The counters run over the tensors
in file order, as in `llama_tensor_get_type` of llama.cpp's `src/llama-quant.cpp` (MIT, commit
0c1e570). One quirk is kept: a tensor that `--tensor-type` names does not advance the counters, so
it moves the mixture of the tensors after it.

Types come from names, roles and shapes alone; no weight is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from convert.gguf import GGML_TYPES
from convert.gguf_plan import GGUFOutput
from convert.model_spec import ModelSpec
from quantize.choice import NO_OVERRIDES, Choice, Overrides, fit, needs_importance, override
from quantize.mixture_table import CONDITIONS, LOW_BIT_V, Mixture, Place


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
        choice = override(overrides, output)
        if choice is None:
            wanted = _wanted(spec, mixture, output, tied, values, importance, counters, overrides)
            choice = fit(wanted, output.tensor.shape[-1])
        choices[output.tensor.name] = choice
    return choices


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
    place = Place(
        index=index,
        total=values if role == "attn_v" else spec.num_hidden_layers,
        queries_per_kv=spec.num_attention_heads // spec.num_key_value_heads,
        experts=max(spec.num_experts, 1),
        importance=importance,
    )
    wanted = mixture.default
    for rule_role, ggml_type, condition in mixture.rules:
        if rule_role == role and CONDITIONS[condition](place):
            wanted = ggml_type
            break
    low_bit = LOW_BIT_V in mixture.rules
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


def mixture_needs_importance(mixture: Mixture, role: str, ggml_type: str | None) -> bool:
    """Whether llama-quantize refuses to store a tensor so under this mixture without an imatrix."""
    low = mixture.name == "Q2_K_S" and ggml_type == "Q2_K" and role not in ("token_embd", "output")
    return low or needs_importance(role, ggml_type)
