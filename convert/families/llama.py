"""Llama 2, 3, 3.1, 3.2: the family of most Hermes models, from Hermes 2 Pro to Hermes 4 405B.

Names on the left are Hugging Face's, in the middle llama.cpp's. Q and K rows are interleaved for
llama.cpp's rotary embedding. `rotary_emb.inv_freq`, stored by checkpoints of 2023, is derived from
config.json and dropped.
"""

from convert.families import Family, Rule

_LAYER = "model.layers.{layer}."
_BLOCK = "blk.{layer}."


def _linear(module: str, role: str, shape: tuple[str, str], interleave: bool = False) -> list[Rule]:
    """A projection's weight and its bias, which only checkpoints with attention_bias have."""
    name = _LAYER + module
    return [
        Rule(f"{name}.weight", f"{_BLOCK}{role}.weight", role, shape, interleave),
        Rule(f"{name}.bias", f"{_BLOCK}{role}.bias", f"{role}_bias", shape[:1], interleave, True),
    ]


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    gguf_architecture="llama",
    rules=(
        Rule("model.embed_tokens.weight", "token_embd.weight", "token_embd", ("vocab", "hidden")),
        Rule("lm_head.weight", "output.weight", "output", ("vocab", "hidden")),
        Rule("model.norm.weight", "output_norm.weight", "output_norm", ("hidden",)),
        Rule(_LAYER + "input_layernorm.weight", _BLOCK + "attn_norm.weight", "norm", ("hidden",)),
        Rule(
            _LAYER + "post_attention_layernorm.weight",
            _BLOCK + "ffn_norm.weight",
            "norm",
            ("hidden",),
        ),
        *_linear("self_attn.q_proj", "attn_q", ("q", "hidden"), interleave=True),
        *_linear("self_attn.k_proj", "attn_k", ("kv", "hidden"), interleave=True),
        *_linear("self_attn.v_proj", "attn_v", ("kv", "hidden")),
        *_linear("self_attn.o_proj", "attn_output", ("hidden", "q")),
        *_linear("mlp.gate_proj", "ffn_gate", ("intermediate", "hidden")),
        *_linear("mlp.up_proj", "ffn_up", ("intermediate", "hidden")),
        *_linear("mlp.down_proj", "ffn_down", ("hidden", "intermediate")),
        Rule(_LAYER + "self_attn.rotary_emb.inv_freq", None, "rope", (), False, True),
    ),
)
