"""Llama 2, 3, 3.1, 3.2, and what is shaped like them (Yi, SOLAR): the family of most Hermes models.

Hermes 2 Pro and Theta on Llama 3, Hermes 3 3B to 405B, Hermes 4 70B and 405B, DeepHermes 3B and 8B.
"""

from convert.families.decoder import attention, ends, gated_mlp, norm
from convert.families.rules import Family

LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    gguf_architecture="llama",
    rules=(
        *ends(),
        *attention(interleave=True),
        norm("post_attention_layernorm", "ffn_norm"),
        *gated_mlp(),
    ),
)
