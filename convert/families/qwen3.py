"""Qwen3: Hermes 4 14B. Norms on Q and K, rows of Q and K in Hugging Face's own order."""

from convert.families.decoder import attention, ends, gated_mlp, norm
from convert.families.rules import Family

QWEN3 = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    gguf_architecture="qwen3",
    rules=(
        *ends(),
        *attention(interleave=False),
        norm("self_attn.q_norm", "attn_q_norm", "head"),
        norm("self_attn.k_norm", "attn_k_norm", "head"),
        norm("post_attention_layernorm", "ffn_norm"),
        *gated_mlp(),
    ),
)
