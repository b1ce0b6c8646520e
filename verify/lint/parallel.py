"""On how many GPUs can vLLM split it: heads, and the blocks or groups that share a scale.

Tensor parallelism cuts q, k, v, gate and up by rows (column-parallel, in vLLM's words) and o and
down by columns (row-parallel). Heads must divide; KV heads divide, or are replicated when there are
more GPUs than KV heads. A scale that covers a block cannot be cut, so with blocks every part must
end on one: vLLM's `validate_fp8_block_shape` (read from its source) asks for

    size > 1    columns / size % block_columns == 0 where columns are cut,
                rows of every fused part / size % block_rows == 0 where rows are cut
    size = 1    rows % block_rows == 0 for every fused part but the last

and with groups along a row, columns / size must be whole groups. Channel and tensor scales ask for
nothing more than the heads. What a kernel asks for beyond that is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from convert.model_spec import ModelSpec
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.quantization import Group
from verify.stored_checkpoint import StoredCheckpoint, is_quantized

SIZES = (1, 2, 4, 8, 16)
_FUSED: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13": ("w1", "w3"),
}
_CUT_BY_COLUMNS: Mapping[str, str] = {
    "o_proj": "q",
    "down_proj": "intermediate",
    "w2": "intermediate",
}
_GROUPED = ("group", "tensor_group")


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Tensor-parallel sizes and why each does not work; `blocked` are those the heads allow."""

    sizes: Mapping[int, str | None]
    blocked: Mapping[int, str]


def plan_parallelism(stored: StoredCheckpoint) -> Parallelism:
    """Which of `SIZES` work; empty for a model whose sizes are not known."""
    if stored.spec is None:
        return Parallelism({}, {})
    return plan_sizes(stored.spec, _kinds(stored))


def plan_sizes(spec: ModelSpec, kinds: Mapping[str, Group]) -> Parallelism:
    """Which of `SIZES` work; `kinds` is the config group of each projection, by its last name."""
    heads = {size: _heads_refuse(spec, size) for size in SIZES}
    blocked = {
        size: why
        for size in SIZES
        if heads[size] is None and (why := next(_blocks_refuse(spec, kinds, size), None))
    }
    return Parallelism({size: heads[size] or blocked.get(size) for size in SIZES}, blocked)


def lint_parallelism(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Sizes that blocks or groups refuse."""
    plan = plan_parallelism(stored)
    works = ", ".join(str(size) for size, why in plan.sizes.items() if why is None) or "none"
    if 1 in plan.blocked:
        expected = "whole blocks in every fused matrix"
        yield finding("tensor-parallel-impossible", "size 1", plan.blocked[1], expected)
    elif plan.blocked:
        sizes = ", ".join(map(str, plan.blocked))
        why = next(iter(plan.blocked.values()))
        yield finding("tensor-parallel-limited", f"size {sizes}", why, f"sizes that work: {works}")


def _kinds(stored: StoredCheckpoint) -> dict[str, Group]:
    """One config group for each kind of projection that is quantized."""
    found: dict[str, Group] = {}
    for name, module in stored.modules.items():
        group = stored.group_of(name)
        if group is not None and is_quantized(module):
            found.setdefault(name.rpartition(".")[2], group)
    return found


def _heads_refuse(spec: ModelSpec, size: int) -> str | None:
    heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
    if heads % size:
        return f"{heads} attention heads do not divide by {size}"
    if kv_heads % size and size % kv_heads:
        return f"{kv_heads} KV heads neither divide by {size} nor into it"
    if spec.intermediate_size % size:
        return f"intermediate_size {spec.intermediate_size} does not divide by {size}"
    return None


def _blocks_refuse(spec: ModelSpec, kinds: Mapping[str, Group], size: int) -> Iterator[str]:
    """Why the quantized projections cannot be cut `size` times."""
    for kind, dimension in _CUT_BY_COLUMNS.items():
        if (group := kinds.get(kind)) is not None:
            yield from _columns_refuse(kind, group, spec.size(dimension), size)
    for fused, parts in _FUSED.items():
        group = next((kinds[part] for part in parts if part in kinds), None)
        if group is None:
            continue
        yield from _columns_refuse(fused, group, spec.hidden_size, 1)
        if group.strategy == "block":
            rows = _part_rows(spec, fused, size)
            yield from _rows_refuse(fused, group.block[0], rows, parts, size)


def _columns_refuse(kind: str, group: Group, columns: int, size: int) -> Iterator[str]:
    if group.strategy == "block":
        unit, needed = group.block[1], size > 1
    else:
        unit, needed = max(group.group_size, 1), group.strategy in _GROUPED
    if needed and (columns // size) % unit:
        part = f"{columns} / {size} = {columns // size}" if size > 1 else str(columns)
        yield f"{kind}: {part} columns, no multiple of {unit}"


def _part_rows(spec: ModelSpec, fused: str, size: int) -> tuple[int, ...]:
    """Rows of every part of a fused matrix on one of `size` GPUs."""
    if fused != "qkv_proj":
        return (spec.intermediate_size // size,) * 2
    kv = max(1, spec.num_key_value_heads // size) * spec.head_dim
    return spec.num_attention_heads // size * spec.head_dim, kv, kv


def _rows_refuse(
    fused: str, block: int, rows: Sequence[int], parts: Sequence[str], size: int
) -> Iterator[str]:
    checked = rows if size > 1 else rows[:-1]
    for part, count in zip(parts, checked, strict=False):
        if count % block:
            yield f"{fused}: {count} rows of {part} on each, no multiple of {block}"
