"""GGUF files that exist: their headers as artifacts of one model, and the model's shape.

In: paths, or headers read over the network. Out: a `Subject`. The head dimension is stated or
follows from the width; the vocabulary is as tall as the embedding. Layers with KV heads of their
own, a sliding window or a state-space part make an architecture that has no formula here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError
from convert.families import FAMILIES
from convert.gguf import SPLIT_NAME, GGUFTensor, split_name
from convert.gguf_reader import GGUFFile, read_gguf_file
from convert.model_spec import ModelSpec
from quantize.fit.candidate import Subject, from_gguf

Groups = dict[str, tuple[str, list[tuple[GGUFFile, int]]]]
"""By name: where an engine finds it, and its parsed files with their sizes."""
_UNMODELLED_KEYS = ("attention.sliding_window", "ssm.state_size", "attention.kv_lora_rank")


def _unmodelled(fields: Mapping[str, Any]) -> str | None:
    """Why there is no formula for this file's attention; None where there is one."""
    arch = str(fields.get("general.architecture"))
    known = sorted({family.gguf_architecture for family in FAMILIES})
    if arch not in known:
        return f"llama.cpp architecture {arch!r}; known: {', '.join(known)}"
    if isinstance(fields.get(f"{arch}.attention.head_count_kv"), list):
        return "layers with different numbers of KV heads"
    for key in _UNMODELLED_KEYS:
        if fields.get(f"{arch}.{key}"):
            return f"hybrid attention ({key})"
    return None


def _spec(fields: Mapping[str, Any], tensors: Sequence[GGUFTensor], path: Path) -> ModelSpec:
    """The shape; CheckpointError names the key that is missing."""
    arch = str(fields.get("general.architecture"))
    shapes = {tensor.name: tensor.shape for tensor in tensors}

    def integer(key: str, default: int | None = None) -> int:
        value = fields.get(f"{arch}.{key}", default)
        if isinstance(value, list) and value:
            value = max(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise CheckpointError(f"{path}: {arch}.{key} is {value!r}; expected a number")
        return value

    hidden, heads = integer("embedding_length"), integer("attention.head_count")
    if not heads or not hidden or "token_embd.weight" not in shapes:
        raise CheckpointError(f"{path}: no embedding, no heads or no width; not a language model")
    head_dim = integer("attention.key_length", hidden // heads)
    family = next((f for f in FAMILIES if f.gguf_architecture == arch), None)
    return ModelSpec(
        architecture=family.architectures[0] if family else arch,
        model_type=arch,
        hidden_size=hidden,
        intermediate_size=integer("feed_forward_length", 0),
        num_hidden_layers=integer("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=integer("attention.head_count_kv", heads) or 1,
        head_dim=head_dim,
        head_dim_stated=True,
        vocab_size=shapes["token_embd.weight"][0],
        max_position_embeddings=integer("context_length"),
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=None,
        eos_token_ids=(),
        dtype=None,
        quantization=None,
        num_experts=integer("expert_count", 0),
        num_experts_per_tok=integer("expert_used_count", 0),
    )


def read_gguf_subject(paths: Sequence[Path], reference: str) -> Subject:
    """The model of these files; a part of a split one stands for all of its parts."""
    groups: Groups = {}
    for path in dict.fromkeys(part for given in paths for part in _parts(given)):
        _, files = groups.setdefault(stem_of(path.name), (str(path), []))
        files.append((read_gguf_file(path), path.stat().st_size))
    return gguf_subject(groups, reference)


def stem_of(file: str) -> str:
    """A file's name without its number among the parts."""
    match = SPLIT_NAME.fullmatch(file)
    return match[1] if match else file.removesuffix(".gguf")


def _parts(path: Path) -> Iterator[Path]:
    """Every part of a file that was split, from the name of any."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        yield path
        return
    for i in range(int(match[3])):
        part = path.with_name(split_name(match[1], i, int(match[3])))
        if not part.is_file():
            raise CheckpointError(f"{part}: missing; {path.name} is one of {int(match[3])} parts")
        yield part


def gguf_subject(groups: Groups, reference: str) -> Subject:
    """The model that parsed files describe, each group one artifact; the first gives the shape."""
    candidates, first = [], None
    for stem, (place, files) in groups.items():
        fields = {key: value for file, _ in files for key, value in file.fields.items()}
        tensors = [tensor for file, _ in files for tensor in file.tensors.values()]
        spec = _spec(fields, tensors, files[0][0].path)
        if first is None:
            first = (stem, spec, _unmodelled(fields))
        target = max(
            {t.ggml_type for t in tensors},
            key=lambda kind: sum(t.size_bytes for t in tensors if t.ggml_type == kind),
        )
        candidates.append(from_gguf(stem, target, files, place))
    assert first is not None
    name, spec, unmodelled = first
    return Subject(name, reference, spec, tuple(candidates), unmodelled)
