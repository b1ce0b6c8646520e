"""How each quantized format stores a matrix: one row of a table for each (format, strategy).

A matrix (out, in) named X becomes X.weight, or X.weight_packed where several values share one
stored integer, and scales beside it. Measured on files of compressed-tensors 0.19 as
llmcompressor 0.14 writes them; `fp8` is the dialect of AutoFP8 (one scale a tensor) and of DeepSeek
(one a block, named `weight_scale_inv`, a multiplier all the same):

    format                     weight             scale                    strategies
    float-quantized            F8_E4M3 (out, in)  as the source            tensor channel block
    int-quantized              I8 (out, in)       as the source            tensor channel group
    pack-quantized             I32, 32/bits each  as the source, + shape   tensor channel group
    nvfp4-pack-quantized       U8, 2 each         F8_E4M3 (out, in/16)     tensor_group
    mxfp4-pack-quantized       U8, 2 each         U8 (out, in/32), E8M0    group
    mxfp8-quantized            F8_E4M3 (out, in)  U8 (out, in/32), E8M0    group

Scales of the tensor strategy are (1,) or scalars; of channel (out, 1); of block
(ceil(out/128), ceil(in/128)); of group (out, in/size). A new format is one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from convert.tensor import SOURCE_DTYPES
from verify.quantization import FP8, Group

Shape = tuple[int, ...]
_E8M0 = ("U8", "F8_E8M0")
_ONE: tuple[Shape, ...] = ((1,), ())


@dataclass(frozen=True, slots=True)
class Layout:
    """How one (format, strategy) stores a matrix; `values_each` values share one stored item."""

    weight: str
    weight_dtypes: tuple[str, ...]
    scale: str
    scale_dtypes: tuple[str, ...]
    item_bits: int = 8


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that must (or may) lie beside the weight: its suffix, dtypes and shapes."""

    suffix: str
    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    required: bool = True


_FLOAT = Layout("weight", ("F8_E4M3",), "weight_scale", SOURCE_DTYPES)
_INT = Layout("weight", ("I8",), "weight_scale", SOURCE_DTYPES)
_PACKED = Layout("weight_packed", ("I32",), "weight_scale", SOURCE_DTYPES, item_bits=32)
_NAIVE = Layout("weight", ("F8_E4M3", "I8"), "weight_scale", SOURCE_DTYPES)
LAYOUTS: Mapping[tuple[str, str], Layout] = {
    **{("float-quantized", strategy): _FLOAT for strategy in ("tensor", "channel", "block")},
    **{("int-quantized", strategy): _INT for strategy in ("tensor", "channel", "group")},
    **{("naive-quantized", strategy): _NAIVE for strategy in ("tensor", "channel", "block")},
    **{("pack-quantized", strategy): _PACKED for strategy in ("tensor", "channel", "group")},
    ("nvfp4-pack-quantized", "tensor_group"): Layout(
        "weight_packed", ("U8",), "weight_scale", ("F8_E4M3",)
    ),
    ("mxfp4-pack-quantized", "group"): Layout("weight_packed", ("U8",), "weight_scale", _E8M0),
    ("mxfp8-quantized", "group"): Layout("weight", ("F8_E4M3",), "weight_scale", _E8M0),
    (FP8, "tensor"): _FLOAT,
    (FP8, "block"): Layout("weight", ("F8_E4M3",), "weight_scale_inv", (*SOURCE_DTYPES, *_E8M0)),
}
"""By (format, strategy of the weights)."""

COMPANIONS = (
    "weight_scale",
    "weight_scale_inv",
    "weight_global_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
    "input_scale",
    "input_global_scale",
    "input_zero_point",
)
"""Suffixes of tensors that mean something only beside a quantized weight."""
CACHE_SCALES = ("k_scale", "v_scale")
"""Scales of an FP8 KV cache, beside the attention's projections."""
_OTHER_CACHE = ("q_scale", "kv_scale", "k_zero_point", "v_zero_point", "output_scale")
SUFFIXES = ("weight_packed", *COMPANIONS, *CACHE_SCALES, *_OTHER_CACHE)
"""Every suffix that only a quantizer writes."""


def cache_scale_places(attention: str, letter: str) -> tuple[str, str, str]:
    """Where the scale of keys ("k") or values ("v") may lie, the usual place first."""
    return (
        f"{attention}.{letter}_scale",
        f"{attention}.{letter}_proj.{letter}_scale",
        f"{attention}.{letter}_proj.output_scale",
    )


def layout_of(group: Group) -> Layout | None:
    """The layout of a group's weights; None for one that is not in the table."""
    return LAYOUTS.get(group.scheme)


def values_each(layout: Layout, group: Group) -> int:
    """Values in one stored item along a row."""
    packed = layout.weight == "weight_packed"
    return max(layout.item_bits // max(group.num_bits, 1), 1) if packed else 1


def stored_columns(layout: Layout, group: Group, columns: int) -> int:
    """Stored items a row of `columns` values."""
    return -(-columns // values_each(layout, group))


def scale_shapes(group: Group, shape: tuple[int, int]) -> tuple[Shape, ...]:
    """The shapes a weight's scales may have."""
    out, columns = shape
    size = max(group.group_size, 1)
    by_strategy: Mapping[str, Callable[[], tuple[Shape, ...]]] = {
        "tensor": lambda: _ONE,
        "channel": lambda: ((out, 1),),
        "block": lambda: ((-(-out // group.block[0]), -(-columns // group.block[1])),),
        "group": lambda: ((out, -(-columns // size)),),
        "tensor_group": lambda: ((out, -(-columns // size)),),
    }
    return by_strategy[group.strategy]()


def parts_of(group: Group, shape: tuple[int, int]) -> tuple[Part, ...]:
    """Everything that lies beside the weight of a matrix (out, in); the weight itself is not in it.

    The group's scheme must be in `LAYOUTS`.
    """
    layout = LAYOUTS[group.scheme]
    scales = scale_shapes(group, shape)
    found = [Part(layout.scale, layout.scale_dtypes, scales)]
    if group.format == "pack-quantized":
        found.append(Part("weight_shape", ("I64", "I32"), ((2,),)))
        found.append(Part("weight_g_idx", ("I32", "I64"), ((shape[1],),), required=False))
    if group.format == "nvfp4-pack-quantized":
        found.append(Part("weight_global_scale", ("F32",), _ONE))
    if not group.symmetric:
        found.append(_zero_points(group, scales[0]))
    if group.static_input or (group.format == FP8 and group.strategy == "tensor"):
        required = group.static_input
        found.append(Part("input_scale", SOURCE_DTYPES, _ONE, required=required))
    if group.format == "nvfp4-pack-quantized":
        found.append(Part("input_global_scale", ("F32",), _ONE, required=group.local_input))
    return tuple(found)


def _zero_points(group: Group, scales: Shape) -> Part:
    """Zero points have the scales' shape; pack-quantized packs them along the rows."""
    if group.format != "pack-quantized" or len(scales) != 2:
        return Part("weight_zero_point", ("I8",), (scales,))
    rows = -(-scales[0] * group.num_bits // 32)
    return Part("weight_zero_point", ("I32",), ((rows, scales[1]),))
