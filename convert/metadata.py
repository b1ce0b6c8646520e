"""What a GGUF header says about the model, apart from its tensors.

In: the typed config, the generation config, the authorship, the vocabulary, the chat templates.
Out: fields in the order in which llama.cpp's converter writes them (`conversion/base.py`, MIT).
Sampling settings of generation_config.json are kept, because llama.cpp takes its defaults from
them.
"""

from __future__ import annotations

from pathlib import Path

from convert.authorship import Authorship
from convert.chat_template import DEFAULT, Templates
from convert.errors import CheckpointError
from convert.families.rules import Family
from convert.gguf import Field
from convert.model_spec import ModelSpec, read_json_object
from convert.tokenizer import Vocabulary

QUANTIZATION_VERSION = 2
_HEAD_DIM_BY_DEFAULT = ("llama", "mistral")
"""Models whose config class in transformers fills head_dim in, so that the converter sees it."""
_SAMPLING = {
    "sequence": ("sequence", "str"),
    "top_k": ("top_k", "i32"),
    "top_p": ("top_p", "f32"),
    "min_p": ("min_p", "f32"),
    "xtc_probability": ("xtc_probability", "f32"),
    "xtc_threshold": ("xtc_threshold", "f32"),
    "temperature": ("temp", "f32"),
    "penalty_last_n": ("penalty_last_n", "i32"),
    "repetition_penalty": ("penalty_repeat", "f32"),
    "mirostat": ("mirostat", "i32"),
    "mirostat_tau": ("mirostat_tau", "f32"),
    "mirostat_eta": ("mirostat_eta", "f32"),
}


def size_label(parameters: int, experts: int = 0) -> str:
    """A parameter count in two significant digits: 8030261248 is `8.0B`.

    With experts, the count of one expert's model: `8x7.2B`.
    """
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
    limit, suffix = next((unit for unit in units if parameters > unit[0]), units[-1])
    scaled = parameters / limit
    digits = len(str(round(scaled)).lstrip("0"))
    label = f"{scaled:.{max(2 - digits, 0)}f}{suffix}"
    return f"{experts}x{label}" if experts else label


def model_fields(
    family: Family,
    spec: ModelSpec,
    folder: Path,
    *,
    authorship: Authorship,
    parameters: int,
    file_type: int,
) -> list[Field]:
    """`general.*` and architecture fields: everything that stands before the tokenizer's.

    `parameters` counts all values, of stacked experts those of one expert.
    """
    return [
        Field("general.architecture", "str", family.gguf_architecture),
        Field("general.type", "str", "model"),
        *sampling_fields(folder),
        *authorship.fields(size_label(parameters, spec.num_experts)),
        *architecture_fields(family.gguf_architecture, spec, file_type),
        Field("general.quantization_version", "u32", QUANTIZATION_VERSION),
    ]


def architecture_fields(arch: str, spec: ModelSpec, file_type: int) -> list[Field]:
    """The sizes and constants that llama.cpp computes with, and the file's type."""
    sizes: list[tuple[str, str, float]] = [
        ("block_count", "u32", spec.num_hidden_layers),
        ("context_length", "u32", spec.max_position_embeddings),
        ("embedding_length", "u32", spec.hidden_size),
        ("feed_forward_length", "u32", spec.intermediate_size),
        ("attention.head_count", "u32", spec.num_attention_heads),
        ("attention.head_count_kv", "u32", spec.num_key_value_heads),
        ("rope.freq_base", "f32", spec.rope_theta),
        ("attention.layer_norm_rms_epsilon", "f32", spec.rms_norm_eps),
    ]
    if spec.num_experts:
        sizes += [
            ("expert_count", "u32", spec.num_experts),
            ("expert_used_count", "u32", spec.num_experts_per_tok),
        ]
    if spec.head_dim_stated or spec.model_type in _HEAD_DIM_BY_DEFAULT:
        sizes += [
            ("attention.key_length", "u32", spec.head_dim),
            ("attention.value_length", "u32", spec.head_dim),
        ]
    fields = [Field(f"{arch}.{key}", kind, value) for key, kind, value in sizes]
    fields.append(Field("general.file_type", "u32", file_type))
    if arch == "llama":
        fields.append(Field("llama.vocab_size", "u32", spec.vocab_size))
        fields.append(Field("llama.rope.dimension_count", "u32", spec.head_dim))
    return fields


def sampling_fields(folder: Path) -> list[Field]:
    """The settings of generation_config.json that llama.cpp takes its defaults from."""
    path = folder / "generation_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    fields = []
    for key, (name, kind) in _SAMPLING.items():
        value = settings.get(key)
        if kind == "str" and isinstance(value, str):
            fields.append(Field(f"general.sampling.{name}", kind, value))
        elif kind != "str" and isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) < 2**31:
                raise CheckpointError(f"{path}: {key} is {value}; expected a sampling setting")
            number = int(value) if kind == "i32" else float(value)
            fields.append(Field(f"general.sampling.{name}", kind, number))
    return fields


def tokenizer_fields(vocabulary: Vocabulary, templates: Templates) -> list[Field]:
    """The vocabulary's fields, then every chat template under its name."""
    chosen = templates.effective
    named = {
        "".join(c if c.isascii() and c.isalnum() else "_" for c in name): text
        for name, text in chosen.items()
        if name != DEFAULT
    }
    fields = vocabulary.fields()
    fields += [Field(f"tokenizer.chat_template.{n}", "str", text) for n, text in named.items()]
    if named:
        fields.append(Field("tokenizer.chat_templates", "[str]", tuple(sorted(named))))
    if DEFAULT in chosen:
        fields.append(Field("tokenizer.chat_template", "str", chosen[DEFAULT]))
    return fields
