"""Random miniature checkpoints, written as Hugging Face would write them, for every room's tests.

No transformers: a config, safetensors shards by the safetensors library, and a byte-level BPE
tokenizer with the Llama-3 split pattern and the Hermes tags. Small enough to make in milliseconds,
real enough for llama.cpp, transformers and llmcompressor to load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from convert.bpe import PRE_TOKENIZERS

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
TAGS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SPECIALS = ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a miniature; the defaults suit every ggml type."""

    hidden: int = 256
    intermediate: int = 512
    layers: int = 2
    heads: int = 8
    kv_heads: int = 4
    vocab: int = 320


def weights(shape: Shape, *, tied: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Heavy-tailed random float32 weights under Hugging Face's Llama names."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        normal = torch.randn(rows, columns, generator=generator) * 0.02
        return normal * (1 + 4 * (torch.rand(rows, columns, generator=generator) > 0.99))

    def norm() -> torch.Tensor:
        return 1 + 0.1 * torch.randn(shape.hidden, generator=generator)

    kv = shape.hidden // shape.heads * shape.kv_heads
    found = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        found |= {
            name + "self_attn.q_proj.weight": matrix(shape.hidden, shape.hidden),
            name + "self_attn.k_proj.weight": matrix(kv, shape.hidden),
            name + "self_attn.v_proj.weight": matrix(kv, shape.hidden),
            name + "self_attn.o_proj.weight": matrix(shape.hidden, shape.hidden),
            name + "mlp.gate_proj.weight": matrix(shape.intermediate, shape.hidden),
            name + "mlp.up_proj.weight": matrix(shape.intermediate, shape.hidden),
            name + "mlp.down_proj.weight": matrix(shape.hidden, shape.intermediate),
            name + "input_layernorm.weight": norm(),
            name + "post_attention_layernorm.weight": norm(),
        }
    found["model.norm.weight"] = norm()
    if not tied:
        found["lm_head.weight"] = matrix(shape.vocab, shape.hidden)
    return found


def config(shape: Shape, *, tied: bool, dtype: str = "BF16", scaled: bool = True) -> dict:
    """config.json of a miniature, with llama3 rope scaling unless told otherwise."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": scaling if scaled else None,
        "tie_word_embeddings": tied,
        "bos_token_id": 257,
        "eos_token_id": 260,
    }


def write_tokenizer(folder: Path) -> None:
    """256 byte tokens, one merge, from 257 the special tokens, from 261 the tags, then holes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    (split, _), *_ = PRE_TOKENIZERS
    model = models.BPE(vocab | {"th": 256}, [("t", "h")], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIALS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in TAGS])
    bos = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|im_end|>",
        "chat_template": [
            {"name": "default", "template": TEMPLATE},
            {"name": "tool_use", "template": TEMPLATE.replace("{{ m.content", "T{{ m.content")},
        ],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def change_json(path: Path, **values: object) -> None:
    """Set keys of a JSON object on disk; None removes one."""
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def write_checkpoint(
    folder: Path,
    *,
    shape: Shape | None = None,
    dtype: str = "BF16",
    tied: bool = False,
    shards: int = 1,
    scaled: bool = True,
    edit: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write a whole checkpoint; `edit` replaces or adds tensors, already in their dtype."""
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(config(shape, tied=tied, dtype=dtype, scaled=scaled))
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 260, "top_p": 0.9}))
    write_tokenizer(folder)
    tensors = {n: t.to(DTYPES[dtype]) for n, t in weights(shape, tied=tied).items()}
    tensors |= edit or {}
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        part = names[shard::shards]
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
