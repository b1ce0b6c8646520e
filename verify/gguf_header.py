"""A GGUF's header beside config.json: does llama.cpp compute what the source's config says?

In: the source's checkpoint and a GGUF. Out: a Finding for each key that says otherwise. What is
expected is what `convert/metadata.py` writes, all of it but who made the file and in which type. A
key that is missing is right where llama.cpp's own default (`src/llama-model.cpp`, MIT) is the value
that is meant: published files of other converters lack some.

The fact a reader lacks: llama.cpp computes with whatever stands under `<architecture>.`, whether or
not the model has it. A rope scaling or a sliding window that someone adds moves every answer and is
refused by no loader. So keys there that nothing expects are findings, unless their value is the one
that changes nothing. Settings for sampling may be missing (older converters knew none); one that is
there must be generation_config.json's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from convert.checkpoint import Checkpoint
from convert.families import family_of
from convert.gguf_reader import GGUFFile
from convert.metadata import QUANTIZATION_VERSION, architecture_fields, sampling_fields
from convert.model_spec import ModelSpec
from verify.check import Finding

_SAMPLING = "general.sampling."
_OF_THE_FILE = "general.file_type"
_CHANGES_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.finetuned": (False, True),
    "rope.scaling.type": ("none", "linear"),
}
"""Values of keys that config.json has no word for with which llama.cpp computes as without them.

A scaling of type linear is by its factor, which has a key of its own.
"""


def header_findings(source: Checkpoint, file: GGUFFile) -> Iterator[Finding]:
    """Where a header contradicts config.json, or says more than it does."""
    spec, fields = source.spec, file.fields
    arch = family_of(spec).gguf_architecture
    wanted: dict[str, Any] = {"general.architecture": arch}
    wanted |= {f.key: f.value for f in architecture_fields(arch, spec, 0) if f.key != _OF_THE_FILE}
    defaults = {f"{arch}.{key}": value for key, value in _defaults(spec, fields, arch).items()}
    for key, value in wanted.items():
        found = fields.get(key, defaults.get(key))
        if not _is_same(found, value, spec.num_hidden_layers):
            yield Finding(key, f"is {fields.get(key)!r}, config.json says {value!r}")
    implied = {f"{arch}.{key}": value for key, value in _implied(spec).items()}
    for key, found in fields.items():
        if key.startswith(f"{arch}.") and key not in wanted:
            yield from _look_at_other(key, found, implied.get(key), arch)
    if fields.get("general.type", "model") != "model":
        yield Finding("general.type", f"is {fields['general.type']!r}, expected 'model'")
    version = fields.get("general.quantization_version", QUANTIZATION_VERSION)
    if version != QUANTIZATION_VERSION:
        message = f"is {version!r}, expected {QUANTIZATION_VERSION}"
        yield Finding("general.quantization_version", message)
    yield from _sampling_findings(source, fields)


def _defaults(spec: ModelSpec, fields: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """What llama.cpp takes for keys that are missing."""
    head = spec.hidden_size // spec.num_attention_heads
    tokens = fields.get("tokenizer.ggml.tokens")
    return {
        "attention.head_count_kv": spec.num_attention_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": fields.get(f"{arch}.attention.key_length", head),
        "rope.freq_base": 10000.0,
        "vocab_size": len(tokens) if isinstance(tokens, list) else 0,
    }


def _implied(spec: ModelSpec) -> dict[str, Any]:
    """Keys that our writer leaves to llama.cpp's defaults, which other converters write."""
    return {
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "expert_count": spec.num_experts,
        "expert_used_count": spec.num_experts_per_tok if spec.num_experts else 0,
        "rope.dimension_count": spec.head_dim,
        "vocab_size": spec.vocab_size,
    }


def _look_at_other(key: str, found: Any, implied: Any, arch: str) -> Iterator[Finding]:
    """A key that nothing asks for."""
    if implied is not None:
        if found != implied:
            yield Finding(key, f"is {found!r}, config.json says {implied!r}")
    elif found not in _CHANGES_NOTHING.get(key.removeprefix(f"{arch}."), ()):
        yield Finding(key, f"is {_short(found)}; config.json has nothing of it, llama.cpp obeys it")


def _is_same(found: Any, expected: Any, layers: int) -> bool:
    """Equal, floats as far as the 32 bits that GGUF keeps of them; or equal in each layer."""
    if isinstance(found, list):
        return len(found) == layers and all(_is_same(one, expected, layers) for one in found)
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(found, expected, rel_tol=2**-23)
    return bool(found == expected)


def _sampling_findings(source: Checkpoint, fields: Mapping[str, Any]) -> Iterator[Finding]:
    expected = {field.key: field.value for field in sampling_fields(source.path)}
    for key, found in fields.items():
        if key.startswith(_SAMPLING) and not _is_same(found, expected.get(key), 0):
            said = repr(expected[key]) if key in expected else "nothing of it"
            yield Finding(key, f"is {_short(found)}, generation_config.json says {said}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
