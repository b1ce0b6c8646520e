"""Mixtral: Nous-Hermes 2 Mixtral 8x7B. Llama's attention, and experts in place of the MLP.

llama.cpp keeps one stacked tensor of all experts for each of w1 (gate), w2 (down) and w3 (up),
experts in order; Hugging Face keeps one matrix for each. The router is small and stays F32.
"""

from convert.families.decoder import BLOCK, LAYER, attention, ends, norm
from convert.families.rules import Family, Rule

_MOE = LAYER + "block_sparse_moe."


def _experts(matrix: str, role: str, shape: tuple[str, str]) -> Rule:
    name = f"{_MOE}experts.{{expert}}.{matrix}.weight"
    return Rule(name, f"{BLOCK}{role}_exps.weight", role, shape)


MIXTRAL = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    gguf_architecture="llama",
    rules=(
        *ends(),
        *attention(interleave=True),
        norm("post_attention_layernorm", "ffn_norm"),
        Rule(_MOE + "gate.weight", BLOCK + "ffn_gate_inp.weight", "router", ("experts", "hidden")),
        _experts("w1", "ffn_gate", ("intermediate", "hidden")),
        _experts("w2", "ffn_down", ("hidden", "intermediate")),
        _experts("w3", "ffn_up", ("intermediate", "hidden")),
    ),
)
