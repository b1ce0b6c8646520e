"""What one vLLM rank keeps of a safetensors folder: shards, replicas, and the rotary table.

Tensor parallelism cuts Q, K, V, gate and up along their outputs, `o_proj` and `down_proj` along
their inputs, the embedding and the head along the vocabulary, padded to a multiple of 64; norms and
the router are on every rank, and so are scales of the outputs of what is cut along its inputs. With
more ranks than KV heads, K and V are replicated. Scales of 8-bit weights become float32 when they
are loaded. And every rank keeps the cosines and sines of all positions: max_position_embeddings x
head_dim values, 32 MiB for 131,072 positions in 16 bits, which planners tend to leave out.

Checked on the start-up logs in memory_logs.csv: within 0.03 % (`docs/fit.md`). Pipeline stages cut
the layers into equal runs; the embedding is on the first, the head on the last. Sizes in bytes.
"""

from __future__ import annotations

import math
from fractions import Fraction

from convert.errors import InputError
from convert.model_spec import ModelSpec
from quantize.fit.candidate import Candidate, StoredTensor

VOCABULARY_PADDING = 64
_COLUMN = ("q_proj", "gate_proj", "up_proj", "w1", "w3")
_KEY_VALUE = ("k_proj", "v_proj")
_ROW = ("o_proj", "down_proj", "w2")
_VOCABULARY = ("embed_tokens", "lm_head")
_EIGHT_BIT = ("F8_E4M3", "F8_E5M2", "I8")
_WIDTH = {"BF16": 2, "F16": 2, "F32": 4}


def padded_vocabulary(spec: ModelSpec) -> int:
    """Rows of the embedding as vLLM keeps it."""
    return -(-spec.vocab_size // VOCABULARY_PADDING) * VOCABULARY_PADDING


def dtype_bytes(spec: ModelSpec) -> int:
    """Bytes of a value in the model's own dtype, in which it is planned."""
    return 4 if spec.dtype in ("float32", "F32") else 2


def check_parallel(spec: ModelSpec, candidate: Candidate, ranks: int) -> str | None:
    """Why vLLM cannot cut this model into `ranks`; None where it can."""
    sizes = {
        "attention heads": spec.num_attention_heads,
        "rows of the padded vocabulary": padded_vocabulary(spec),
        "intermediate size": spec.intermediate_size,
    }
    for what, size in sizes.items():
        if size % ranks:
            return f"{size} {what} do not divide by {ranks}"
    kv = spec.num_key_value_heads
    if kv % ranks and ranks % kv:
        return f"{kv} KV heads can be neither divided among {ranks} ranks nor replicated evenly"
    return _check_blocks(spec, candidate, ranks)


def _check_blocks(spec: ModelSpec, candidate: Candidate, ranks: int) -> str | None:
    """Blocks and groups must not straddle two ranks."""
    shapes = {tensor.name: tensor for tensor in candidate.tensors if tensor.layer == 0}
    for name, tensor in shapes.items():
        scale = shapes.get(name.removesuffix("_packed") + "_scale")
        if scale is None or not name.endswith((".weight", ".weight_packed")):
            continue
        if len(scale.shape) != 2 or scale.shape[1] == 1:
            continue
        module = name.split(".")[-2]
        outputs, inputs = tensor.shape[0], _inputs(spec, module)
        blocks = (-(-outputs // scale.shape[0]), -(-inputs // scale.shape[1]))
        size, block = (inputs, blocks[1]) if module in _ROW else (outputs, blocks[0])
        if module in _KEY_VALUE:
            size //= min(ranks, spec.num_key_value_heads)
        elif size % ranks == 0:
            size //= ranks
        if size % block:
            return f"{size} rows or columns of {module} a rank do not divide into blocks of {block}"
    return None


def _inputs(spec: ModelSpec, module: str) -> int:
    return spec.size(
        {"o_proj": "q", "down_proj": "intermediate", "w2": "intermediate"}.get(module, "hidden")
    )


def weights_per_rank(candidate: Candidate, spec: ModelSpec, ranks: int = 1, stages: int = 1) -> int:
    """Bytes that the fullest rank of the fullest stage keeps."""
    if stages > spec.num_hidden_layers:
        raise InputError(f"{stages} pipeline stages for {spec.num_hidden_layers} layers")
    eight_bit = {tensor.name for tensor in candidate.tensors if tensor.dtype in _EIGHT_BIT}
    stage_bytes: list[Fraction] = [Fraction(0)] * stages
    for tensor in candidate.tensors:
        stage_bytes[_stage(spec, tensor, stages)] += _kept(tensor, spec, ranks, eight_bit)
    if spec.tie_word_embeddings and stages > 1:
        embedding = next(t for t in candidate.tensors if "embed_tokens" in t.name)
        stage_bytes[-1] += _kept(embedding, spec, ranks, eight_bit)
    rotary = spec.max_position_embeddings * spec.head_dim * dtype_bytes(spec)
    return math.ceil(max(stage_bytes)) + rotary


def _stage(spec: ModelSpec, tensor: StoredTensor, stages: int) -> int:
    if tensor.layer is None:
        return 0 if "embed_tokens" in tensor.name else stages - 1
    return min(tensor.layer * stages // spec.num_hidden_layers, stages - 1)


def _kept(tensor: StoredTensor, spec: ModelSpec, ranks: int, eight_bit: set[str]) -> Fraction:
    """Bytes of one stored array on one rank."""
    module, _, leaf = tensor.name.rpartition(".")
    kind = module.rpartition(".")[2]
    size = Fraction(tensor.size_bytes)
    if leaf == "weight_scale" and f"{module}.weight" in eight_bit:
        size *= Fraction(4, _WIDTH.get(tensor.dtype, 4))
    if kind in _VOCABULARY:
        return size * Fraction(padded_vocabulary(spec), spec.vocab_size) / ranks
    if math.prod(tensor.shape) == 1:
        return size
    if kind in _COLUMN:
        return size / ranks
    if kind in _KEY_VALUE:
        return size / min(ranks, spec.num_key_value_heads)
    if kind in _ROW and len(tensor.shape) == 2 and tensor.shape[1] > 1:
        return size / ranks
    return size
