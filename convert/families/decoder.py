"""The rules that all supported families share: a decoder of gated MLPs and rotary attention.

Names on the left are Hugging Face's, in the middle llama.cpp's. Llama, Mistral and Mixtral rows of
Q and K are interleaved for llama.cpp's rotary embedding; Qwen3 and Seed-OSS rows are not.
`rotary_emb.inv_freq`, stored by checkpoints of 2023, is derived from config.json and dropped.
"""

from convert.families.rules import Rule

LAYER = "model.layers.{layer}."
BLOCK = "blk.{layer}."


def linear(module: str, role: str, shape: tuple[str, str], interleave: bool = False) -> list[Rule]:
    """A projection's weight and its bias, which only some checkpoints have."""
    name = LAYER + module
    return [
        Rule(f"{name}.weight", f"{BLOCK}{role}.weight", role, shape, interleave),
        Rule(f"{name}.bias", f"{BLOCK}{role}.bias", f"{role}_bias", shape[:1], interleave, True),
    ]


def norm(module: str, gguf: str, size: str = "hidden") -> Rule:
    """A norm's weight: a vector."""
    return Rule(f"{LAYER}{module}.weight", f"{BLOCK}{gguf}.weight", "norm", (size,))


def ends() -> tuple[Rule, ...]:
    """What lies outside the layers: embedding, head, last norm, and the dropped buffer."""
    return (
        Rule("model.embed_tokens.weight", "token_embd.weight", "token_embd", ("vocab", "hidden")),
        Rule("lm_head.weight", "output.weight", "output", ("vocab", "hidden")),
        Rule("model.norm.weight", "output_norm.weight", "output_norm", ("hidden",)),
        Rule(LAYER + "self_attn.rotary_emb.inv_freq", None, "rope", (), False, True),
    )


def attention(*, interleave: bool) -> tuple[Rule, ...]:
    """The four projections of grouped-query attention and the norm before them."""
    return (
        norm("input_layernorm", "attn_norm"),
        *linear("self_attn.q_proj", "attn_q", ("q", "hidden"), interleave),
        *linear("self_attn.k_proj", "attn_k", ("kv", "hidden"), interleave),
        *linear("self_attn.v_proj", "attn_v", ("kv", "hidden")),
        *linear("self_attn.o_proj", "attn_output", ("hidden", "q")),
    )


def gated_mlp() -> tuple[Rule, ...]:
    """The three projections of a gated MLP."""
    return (
        *linear("mlp.gate_proj", "ffn_gate", ("intermediate", "hidden")),
        *linear("mlp.up_proj", "ffn_up", ("intermediate", "hidden")),
        *linear("mlp.down_proj", "ffn_down", ("hidden", "intermediate")),
    )
