"""Does config.json describe the tensors: which are quantized, in what form, with which scales?

Every matrix is held against the config group that its name falls under: a module that the config
quantizes must be quantized, one that it ignores must not be, its weight must have the format's
dtype, and the scales beside it the shapes that `layouts.py` gives. A checkpoint whose config was
lost loads as if its codes were weights: transformers gives fluent nonsense and no error.

Reads headers only.
"""

from __future__ import annotations

from collections.abc import Iterator

from convert.tensor import SOURCE_DTYPES, TensorInfo
from verify.layouts import (
    CACHE_SCALES,
    COMPANIONS,
    LAYOUTS,
    SUFFIXES,
    Part,
    layout_of,
    parts_of,
)
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.quantization import FP8, Group, Quantization, Role, role_of
from verify.stored_checkpoint import (
    Module,
    StoredCheckpoint,
    is_quantized,
    matrix_shape,
    weight_of,
)

_CONFIG = "config.json: quantization_config"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def lint_agreement(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Config against tensors."""
    yield from _lint_dtype(stored)
    quantized = [name for name, module in stored.modules.items() if is_quantized(module)]
    quantization = stored.quantization
    if quantization is None:
        if quantized:
            found = f"absent, and {len(quantized)} modules are quantized ({quantized[0]}, ...)"
            yield finding("quantization-config-missing", _CONFIG, found, "the scheme they are in")
        yield from _orphans(stored)
        return
    yield from _lint_understood(quantization)
    if not quantized:
        found = f"{quantization.method}, and no tensor is quantized"
        yield finding("quantization-config-unused", _CONFIG, found, "none, or quantized tensors")
        return
    if not stored.understood:
        return
    yield from _orphans(stored)
    for name, module in stored.modules.items():
        yield from _lint_module(stored, name, module)


def _lint_understood(quantization: Quantization) -> Iterator[LintFinding]:
    """Formats that the table of layouts does not hold."""
    known = ", ".join(sorted({name for name, _ in LAYOUTS}))
    for problem in quantization.problems:
        yield finding("quantization-not-understood", _CONFIG, problem, f"one of {known}")
    for group in quantization.groups:
        if layout_of(group) is None:
            found = f"group {group.name}: {group.format}, strategy {group.strategy}"
            yield finding("quantization-not-understood", _CONFIG, found, f"one of {known}")


def _lint_dtype(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """The embedding's dtype is the checkpoint's; norms may be wider."""
    stated = stored.config.get("torch_dtype") or stored.config.get("dtype")
    expected = _DTYPES.get(str(stated))
    for name, module in stored.modules.items():
        weight = module.get("weight")
        if role_of(name) is not Role.EMBEDDING or weight is None or expected is None:
            continue
        if weight.dtype in SOURCE_DTYPES and weight.dtype != expected:
            yield finding("dtype-differs", weight.name, weight.dtype, f"{expected} ({stated})")


def _lint_module(stored: StoredCheckpoint, name: str, module: Module) -> Iterator[LintFinding]:
    weight = weight_of(module)
    if weight is None or (len(weight.shape) != 2 and not is_quantized(module)):
        return
    group = stored.group_of(name)
    if not is_quantized(module):
        if group is not None and _is_meant(stored, name):
            scheme = " ".join(group.scheme)
            yield finding("module-not-quantized", name, weight.dtype, f"{scheme} ({group.name})")
        return
    if group is None:
        if role_of(name) in (Role.LINEAR, Role.HEAD):  # the others have a lint of their own
            yield finding("module-not-in-config", name, weight.dtype, "BF16, F16 or F32")
        return
    yield from _lint_parts(name, module, weight, group)


def _is_meant(stored: StoredCheckpoint, name: str) -> bool:
    """Whether a target of Linear can mean the module.

    Of a model that is not known here, matrices may belong to other classes (a position embedding, a
    prediction head); there, only what is quantized in some other layer is meant.
    """
    if stored.family is not None:
        return True
    last = name.rpartition(".")[2]
    modules = stored.modules.items()
    return any(other.rpartition(".")[2] == last and is_quantized(m) for other, m in modules)


def _lint_parts(
    name: str, module: Module, weight: TensorInfo, group: Group
) -> Iterator[LintFinding]:
    """The weight's dtype, and what lies beside it."""
    layout = layout_of(group)
    if layout is None:
        return
    if weight.name != f"{name}.{layout.weight}" or weight.dtype not in layout.weight_dtypes:
        found = f"{weight.name.rpartition('.')[2]} {weight.dtype}"
        expected = f"{layout.weight} {' or '.join(layout.weight_dtypes)} ({group.format})"
        yield finding("weight-dtype", weight.name, found, expected)
        return
    shape = matrix_shape(weight, group)
    if shape is None:
        yield finding("tensor-shape", weight.name, str(list(weight.shape)), "a matrix")
        return
    expected_parts = parts_of(group, shape)
    for part in expected_parts:
        yield from _lint_part(name, module.get(part.suffix), part, weight, group)
    known = {layout.weight, *(part.suffix for part in expected_parts)}
    for suffix in (*COMPANIONS, "weight_packed"):
        if suffix in module and suffix not in known:
            yield finding("scale-extra", module[suffix].name, "present", f"none ({group.format})")


def _lint_part(
    name: str, info: TensorInfo | None, part: Part, weight: TensorInfo, group: Group
) -> Iterator[LintFinding]:
    """One scale (or zero point, or shape) beside the weight."""
    shapes = " or ".join(str(list(shape)) for shape in part.shapes)
    if info is None:
        if part.required:
            expected = f"{' or '.join(part.dtypes)} {shapes}"
            yield finding("scale-missing", f"{name}.{part.suffix}", "nothing", expected)
    elif info.shape not in part.shapes:
        found = f"{list(info.shape)} beside a weight {list(weight.shape)}"
        yield finding("scale-shape", info.name, found, f"{shapes} ({group.strategy})")
    elif info.dtype not in part.dtypes:
        yield finding("scale-dtype", info.name, info.dtype, " or ".join(part.dtypes))


def _orphans(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Scales of modules that are not quantized, and scales of a cache nobody speaks of."""
    quantization = stored.quantization
    cached = quantization is not None and (
        quantization.kv_cache is not None or quantization.method == FP8
    )
    for module in stored.modules.values():
        for suffix in SUFFIXES:
            info = module.get(suffix)
            if info is None or suffix == "weight_packed":
                continue
            if suffix in COMPANIONS and not is_quantized(module):
                weight = module.get("weight")
                beside = f"beside {weight.dtype} weights" if weight else "without a weight"
                yield finding("scale-extra", info.name, beside, "a quantized weight")
            elif suffix in CACHE_SCALES and not cached:
                expected = "kv_cache_scheme in config.json"
                yield finding("scale-extra", info.name, "no kv_cache_scheme", expected)
