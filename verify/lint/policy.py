"""Which modules are quantized, and whether those that an engine fuses agree.

Engines put q, k and v into one matrix, gate and up into another, and the experts of a layer into
two: a fused matrix has one scheme. vLLM quantizes matrices of Linear modules only; embedding, head,
norms and routers have no place for scales there, except that an embedding may be packed integers
(`CompressedTensorsEmbeddingWNA16Int`), which is let pass.

Reads headers, and the one-value scales of fused siblings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from convert.tensor import SOURCE_DTYPES, to_float32
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.quantization import Role, role_of
from verify.stored_checkpoint import (
    Module,
    StoredCheckpoint,
    is_quantized,
    read_items,
    weight_of,
)

_BY_ROLE = {
    Role.EMBEDDING: "embedding-quantized",
    Role.HEAD: "head-quantized",
    Role.NORM: "norm-quantized",
    Role.ROUTER: "router-quantized",
}
_FUSED = (
    (re.compile(r"(.*)\.(?:q_proj|k_proj|v_proj)"), r"\1.qkv"),
    (re.compile(r"(.*\.experts)\.\d+\.(?:w[123]|gate_proj|up_proj|down_proj)"), r"\1"),
    (re.compile(r"(.*)\.(?:gate_proj|up_proj)"), r"\1.gate_up"),
)
"""Modules that an engine runs as one; the experts of a layer before the pair of one MLP."""


def lint_policy(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Modules that must stay in 16 bits, and siblings under different schemes."""
    for name, module in stored.modules.items():
        lint = _BY_ROLE.get(role_of(name))
        weight = weight_of(module)
        if lint is None or weight is None or not is_quantized(module):
            continue
        if lint == "embedding-quantized" and weight.dtype == "I32":
            continue
        yield finding(lint, name, weight.dtype, "BF16, F16 or F32")
    for names in _siblings(stored).values():
        yield from _lint_siblings(stored, names)


def _siblings(stored: StoredCheckpoint) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, module in stored.modules.items():
        if weight_of(module) is None:
            continue
        for pattern, fused in _FUSED:
            if match := pattern.fullmatch(name):
                found[match.expand(fused)].append(name)
                break
    return found


def _lint_siblings(stored: StoredCheckpoint, names: list[str]) -> Iterator[LintFinding]:
    first, *others = names
    expected = _scheme(stored, first)
    for name in others:
        scheme = _scheme(stored, name)
        if scheme != expected:
            yield finding("siblings-differ", name, scheme, f"{expected}, as {first}")
            return
    for suffix, lint in (
        ("weight_global_scale", "global-scale-differs"),
        ("weight_scale", "tensor-scale-differs"),
    ):
        values = {name: _one_value(stored, stored.modules[name], suffix) for name in names}
        if "experts" not in first and len(set(values.values())) > 1 and None not in values.values():
            shown = ", ".join(f"{name.rpartition('.')[2]} {v:.4g}" for name, v in values.items())
            yield finding(lint, names[0].rpartition(".")[0], shown, "one value")


def _scheme(stored: StoredCheckpoint, name: str) -> str:
    """How a module is stored, in words: 16 bits, or dtype and config group."""
    module = stored.modules[name]
    weight = weight_of(module)
    if weight is None or not is_quantized(module):
        return "16 bits"
    group = stored.group_of(name)
    return f"{weight.dtype} {' '.join(group.scheme)}" if group else weight.dtype


def _one_value(stored: StoredCheckpoint, module: Module, suffix: str) -> float | None:
    """The scale of a module that has exactly one."""
    info = module.get(suffix)
    if info is None or info.dtype not in SOURCE_DTYPES or int(np.prod(info.shape)) != 1:
        return None
    return float(to_float32(read_items(stored.path, info, 0, 1), info.dtype)[0])
