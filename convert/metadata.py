"""What a GGUF header says about the model, apart from its tensors.

In: the typed config, the generation config, the model card, the vocabulary, the chat templates.
Out: fields in the order in which llama.cpp's converter writes them (`conversion/base.py`, MIT).

The model's name comes from the user or from the card's front matter (`model_name`, else the first
`model-index` entry), never from a folder: a local path has no place in a published file. Sampling
settings of generation_config.json are kept, because llama.cpp takes its defaults from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.chat_template import DEFAULT, Templates
from convert.errors import CheckpointError
from convert.families import Family
from convert.gguf import Field
from convert.model_spec import ModelSpec, read_json_object
from convert.tokenizer import Vocabulary

QUANTIZATION_VERSION = 2
_SAMPLING = {
    "top_k": ("top_k", "i32"),
    "top_p": ("top_p", "f32"),
    "min_p": ("min_p", "f32"),
    "temperature": ("temp", "f32"),
    "repetition_penalty": ("penalty_repeat", "f32"),
}


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The front matter of a README.md, as far as GGUF has fields for it."""

    name: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


def read_model_card(folder: Path) -> ModelCard:
    """Read README.md; a missing card or one without front matter is an empty one."""
    path = folder / "README.md"
    if not path.is_file():
        return ModelCard()
    import yaml
    from huggingface_hub import metadata_load

    try:
        data = metadata_load(path) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = str(error).replace("\n", " ")
        raise CheckpointError(f"{path}: the front matter is not valid YAML: {problem}") from error
    return ModelCard(
        name=_card_name(data),
        license=_text(data.get("license")),
        tags=_texts(data.get("tags")),
        languages=_texts(data.get("language")),
    )


def _card_name(data: Mapping[str, Any]) -> str | None:
    index = data.get("model-index")
    entry = index[0] if isinstance(index, list) and index and isinstance(index[0], dict) else {}
    return _text(data.get("model_name")) or _text(entry.get("name"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text)


def size_label(parameters: int) -> str:
    """A parameter count in two significant digits: 8030261248 is `8.0B`."""
    units = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
    limit, suffix = next((unit for unit in units if parameters > unit[0]), units[-1])
    scaled = parameters / limit
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{suffix}"


def model_fields(
    family: Family, spec: ModelSpec, folder: Path, *, name: str | None, parameters: int
) -> list[Field]:
    """`general.*` and architecture fields, without the file type."""
    card = read_model_card(folder)
    fields = [
        Field("general.architecture", "str", family.gguf_architecture),
        Field("general.type", "str", "model"),
        *_sampling_fields(folder),
    ]
    for key, value in (
        ("general.name", name or card.name),
        ("general.size_label", size_label(parameters)),
        ("general.license", card.license),
    ):
        if value:
            fields.append(Field(key, "str", value))
    for key, values in (("general.tags", card.tags), ("general.languages", card.languages)):
        if values:
            fields.append(Field(key, "[str]", values))
    return fields + _architecture_fields(family.gguf_architecture, spec)


def _architecture_fields(arch: str, spec: ModelSpec) -> list[Field]:
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
    if spec.head_dim_stated:
        sizes += [
            ("attention.key_length", "u32", spec.head_dim),
            ("attention.value_length", "u32", spec.head_dim),
        ]
    sizes += [
        ("vocab_size", "u32", spec.vocab_size),
        ("rope.dimension_count", "u32", spec.head_dim),
    ]
    return [Field(f"{arch}.{key}", kind, value) for key, kind, value in sizes]


def _sampling_fields(folder: Path) -> list[Field]:
    path = folder / "generation_config.json"
    settings = read_json_object(path) if path.is_file() else {}
    fields = []
    for key, (name, kind) in _SAMPLING.items():
        value = settings.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) < 2**31:
                raise CheckpointError(f"{path}: {key} is {value}; expected a sampling setting")
            number = int(value) if kind == "i32" else float(value)
            fields.append(Field(f"general.sampling.{name}", kind, number))
    return fields


def with_file_type(fields: Sequence[Field], file_type: int) -> list[Field]:
    """The model's fields with the type of the file's matrices and the format's version."""
    kept = list(fields)
    at = next((i for i, f in enumerate(kept) if f.key.endswith(".vocab_size")), len(kept))
    kept.insert(at, Field("general.file_type", "u32", file_type))
    version = Field("general.quantization_version", "u32", QUANTIZATION_VERSION)
    at = next((i for i, f in enumerate(kept) if f.key.startswith("tokenizer.")), len(kept))
    kept.insert(at, version)
    return kept


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
