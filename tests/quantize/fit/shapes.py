"""The models of the logs by their public configs, and what would be made of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from quantize.fit.candidate import Candidate, Subject
from quantize.fit.subject import read_subject

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# architecture, layers, hidden, intermediate, heads, KV heads, vocabulary, positions, more
_LLAMA, _QWEN = ("LlamaForCausalLM", "llama"), ("Qwen3ForCausalLM", "qwen3")
_MIXTRAL = ("MixtralForCausalLM", "mixtral")
SHAPES: dict[str, tuple[Any, ...]] = {
    "3B": (_LLAMA, 28, 3072, 8192, 24, 8, 128256, 131072, {"tie_word_embeddings": True}),
    "8B": (_LLAMA, 32, 4096, 14336, 32, 8, 128256, 131072, {}),
    "Llama 3 8B": (_LLAMA, 32, 4096, 14336, 32, 8, 128256, 8192, {"rope_scaling": None}),
    "Hermes 2 Pro 8B": (_LLAMA, 32, 4096, 14336, 32, 8, 128288, 8192, {"rope_scaling": None}),
    "Theta 70B": (_LLAMA, 80, 8192, 28672, 64, 8, 128256, 8192, {"rope_scaling": None}),
    "14B": (_QWEN, 40, 5120, 17408, 40, 8, 151936, 40960, {"head_dim": 128, "rope_scaling": None}),
    "70B": (_LLAMA, 80, 8192, 28672, 64, 8, 128256, 131072, {}),
    "Reflection 70B": (_LLAMA, 80, 8192, 28672, 64, 8, 128262, 131072, {}),
    "405B": (_LLAMA, 126, 16384, 53248, 128, 8, 128256, 131072, {}),
    "Tulu 405B": (_LLAMA, 126, 16384, 53248, 128, 8, 128264, 131072, {}),
    "Meta 405B FP8": (_LLAMA, 126, 16384, 53248, 128, 16, 128256, 131072, {}),
    "Command-R 35B": (_LLAMA, 40, 8192, 22528, 64, 64, 256000, 8192, {"rope_scaling": None}),
    "Mixtral 8x7B": (
        _MIXTRAL,
        *(32, 4096, 14336, 32, 8, 32002, 32768),
        {"num_local_experts": 8, "num_experts_per_tok": 2, "rope_scaling": None},
    ),
}


def config(name: str, **changes: Any) -> dict[str, Any]:
    """config.json of a shape."""
    kind, layers, hidden, intermediate, heads, kv_heads, vocab, positions, more = SHAPES[name]
    return {
        "architectures": [kind[0]],
        "model_type": kind[1],
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA3_ROPE,
        **more,
        **changes,
    }


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(config(name, **changes)))
    return path


@cache
def subject(name: str, *targets: str, dtype: str = "bfloat16") -> Subject:
    with TemporaryDirectory() as folder:
        return read_subject(str(write_config(Path(folder), name, torch_dtype=dtype)), targets)


def candidate(name: str, target: str, dtype: str = "bfloat16") -> Candidate:
    """The source for its own dtype, else what would be made."""
    if target == "source":
        return subject(name, "FP8_DYNAMIC", dtype=dtype).candidates[0]
    return subject(name, target, dtype=dtype).candidates[1]
