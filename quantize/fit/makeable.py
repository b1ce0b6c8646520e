"""What could be made of a 16- or 32-bit checkpoint: every target of `quantize`, planned, not made.

In: a model whose tensors are known (from a whole checkpoint, from headers read over the network, or
from the family's rules over config.json). Out: a `Candidate` for every target, with the sizes that
the plan pass computes. Types that need an importance matrix are planned with one whose weights are
all 1: sizes do not depend on its values. A target that cannot be planned is left out and named.

A GGUF holds the vocabulary. Where there is no tokenizer to read, it is missing from the sizes, and
they are marked as not exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from convert.errors import CheckpointError, HermesQuantError, InputError
from convert.families import family_of
from convert.families.rules import Rule
from convert.model import Model
from convert.model_spec import ModelSpec
from convert.tensor import TensorInfo
from quantize.compressed_table import CALIBRATED, ONESHOT
from quantize.fit.candidate import Candidate, from_plan
from quantize.gguf_targets import Options
from quantize.importance import ImportanceFile
from quantize.job import planners

NEEDS_IMATRIX = "needs an imatrix"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def makeable(
    model: Model, targets: Sequence[str] = (), *, shards_known: bool = True
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Every target (or those named) as a candidate, and a line for each that cannot be planned.

    Targets that need a calibration cannot be planned here, which is said only where they are named
    (FP8_TENSOR has the size of FP8, W4A16 that of W4A16_GPTQ).
    `shards_known` says whether the shards are the checkpoint's: a folder has as many headers.
    """
    plain = planners(Options())
    if unknown := [target for target in targets if target not in plain]:
        raise InputError(f"unknown target {unknown[0]!r}; --to takes {', '.join(plain)}")
    exact = _has_vocabulary(model)
    weighted = planners(Options(importance=_ones(model)))
    found, left_out = [], []
    need_more = {*CALIBRATED, *ONESHOT}
    for target in targets or [target for target in plain if target not in need_more]:
        try:
            planned = plain[target](model, target)
            found.append(from_plan(planned, exact=shards_known if planned.is_folder else exact))
        except HermesQuantError as error:
            if "imatrix" not in str(error):
                left_out.append(f"{target}: {error}")
                continue
            planned = weighted[target](model, target)
            found.append(from_plan(planned, exact=exact, notes=(NEEDS_IMATRIX,)))
    return tuple(found), tuple(left_out)


def _has_vocabulary(model: Model) -> bool:
    """Whether the tokenizer can be read; without it headers are planned with no vocabulary."""
    try:
        return bool(model.tokenizer_fields)
    except CheckpointError:
        model.tokenizer_fields = []
        return False


def _ones(model: Model) -> ImportanceFile:
    means = {}
    for output in model.gguf_outputs():
        shape = output.tensor.shape
        if output.is_matrix:
            columns = shape[-1] * (shape[0] if len(shape) > 2 else 1)
            means[output.tensor.name] = np.broadcast_to(np.float32(1), (1, columns))
    return ImportanceFile("", "", means)


def headers_from_config(spec: ModelSpec, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors that a checkpoint of this config holds, by the rules of its family."""
    family = family_of(spec)
    dtype = _DTYPES.get(str(spec.dtype), "BF16")
    tensors = {}
    for rule in family.rules:
        if rule.gguf is None or (rule.optional and not _has_bias(rule, spec, config)):
            continue
        if rule.role == "output" and spec.tie_word_embeddings:
            continue
        for name, shape in rule.tensors(spec):
            tensors[name] = TensorInfo(name, dtype, shape, "model.safetensors", 0)
    return tensors


def _has_bias(rule: Rule, spec: ModelSpec, config: Mapping[str, Any]) -> bool:
    """Whether a config asks for the bias of a projection."""
    if rule.role == "attn_output_bias":
        key = "attention_out_bias" if spec.model_type == "seed_oss" else "attention_bias"
        return bool(config.get(key))
    return bool(config.get("attention_bias" if rule.role.startswith("attn_") else "mlp_bias"))
