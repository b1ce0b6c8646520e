"""Seed-OSS: Hermes 4.3 36B. Biases on Q, K and V; rows of Q and K in Hugging Face's own order.

llama.cpp calls the second norm of a layer `post_attention_norm` here, `ffn_norm` elsewhere.
"""

from convert.families.decoder import attention, ends, gated_mlp, norm
from convert.families.rules import Family

SEED_OSS = Family(
    name="seed_oss",
    architectures=("SeedOssForCausalLM",),
    gguf_architecture="seed_oss",
    rules=(
        *ends(),
        *attention(interleave=False),
        norm("post_attention_layernorm", "post_attention_norm"),
        *gated_mlp(),
    ),
)
