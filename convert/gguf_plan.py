"""From a checkpoint to a planned GGUF file: which tensors, in which order, at which offsets.

llama.cpp knows two orders. Its converter writes rope_freqs first, then the tensors as the shards
hold them; llama-quantize sorts by layer and name (tensors outside the layers first) and moves
`general.quantization_version` and `general.file_type` to the end of the fields. Both are kept, so
that files can be compared byte for byte (`conversion/base.py` and `src/llama-quant.cpp`, MIT).

Vectors, norms and everything not called `.weight` are stored as F32; what the matrices become is
the caller's choice, per tensor.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convert.cast import Cast
from convert.errors import InputError, TensorError
from convert.families.rules import Tensor
from convert.gguf import Field, GGUFTensor, encode_header, pad, split_name
from convert.model_spec import ModelSpec
from convert.output_tensor import HeadInterleave, OutputTensor, Scheme, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile

ROPE_FREQS = "rope_freqs.weight"
_EXPERT_MATRICES = 3
_LAST_FIELDS = ("general.quantization_version", "general.file_type")


@dataclass(frozen=True, slots=True)
class GGUFOutput:
    """A tensor on its way into a GGUF file; `role` is the family's word for what it does."""

    tensor: OutputTensor
    role: str
    layer: int | None = None

    @property
    def is_matrix(self) -> bool:
        """Whether a 16-bit or quantized type applies to it; everything else is F32."""
        matrix = len(self.tensor.shape) > 1 and self.tensor.name.endswith(".weight")
        return matrix and self.role not in ("norm", "router")


def gguf_outputs(spec: ModelSpec, tensors: Sequence[Tensor]) -> list[GGUFOutput]:
    """The tensors of a GGUF file in the converter's order, all stored as F32 as yet."""
    outputs = list(_outputs(spec, tensors))
    if spec.rope_scaling is None:
        return outputs
    factors = rope_factors(spec)
    rope = OutputTensor(ROPE_FREQS, (len(factors),), "F32", Cast("F32"), computed=factors)
    return [GGUFOutput(rope, "rope_freqs"), *outputs]


def _outputs(spec: ModelSpec, tensors: Sequence[Tensor]) -> Iterator[GGUFOutput]:
    """Tensors in order; the experts of a layer are stacked where the last of them stands."""
    stacks: dict[int | None, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        if tensor.rule.gguf is None:
            continue
        if tensor.expert is None:
            yield _output(spec, (tensor,))
            continue
        stack = stacks[tensor.layer]
        stack[tensor.rule.hf].append(tensor)
        if sum(len(experts) for experts in stack.values()) == _EXPERT_MATRICES * spec.num_experts:
            for _, experts in sorted(stack.items()):
                yield _output(spec, sorted(experts, key=lambda t: t.expert or 0))


def _output(spec: ModelSpec, tensors: Sequence[Tensor]) -> GGUFOutput:
    """One output of one tensor, or of all experts of a layer."""
    first = tensors[0]
    info, name = first.info, first.gguf_name
    assert name is not None
    for tensor in tensors:
        if tensor.info.dtype != info.dtype:
            raise TensorError(
                f"{tensor.info.name}: dtype {tensor.info.dtype}, but {info.name} has {info.dtype};"
                " experts that are stacked must have one dtype"
            )
    order = HeadInterleave(spec.head_dim) if first.rule.interleave else None
    shape = info.shape if first.expert is None else (len(tensors), *info.shape)
    sources = tuple(Source(tensor.info, 0, tensor.info.rows) for tensor in tensors)
    output = OutputTensor(name, shape, info.dtype, Cast("F32"), sources, order)
    return GGUFOutput(output, first.rule.role, first.layer)


def with_schemes(
    outputs: Sequence[GGUFOutput], choose: Callable[[GGUFOutput], Scheme]
) -> list[OutputTensor]:
    """The same tensors with the schemes that `choose` names for the matrices among them."""
    return [
        replace(output.tensor, scheme=choose(output)) if output.is_matrix else output.tensor
        for output in outputs
    ]


def rope_factors(spec: ModelSpec) -> tuple[float, ...]:
    """Divisors of the rotary frequencies under llama3 scaling, one per pair; float32 arithmetic.

    Wavelengths under original/high_freq_factor are kept, those over original/low_freq_factor
    divided by `factor`, and between them the two are blended. Source: Llama 3.1 model code as
    restated in llama.cpp's `conversion/llama.py`; float32 because float64 differs in the last bit,
    except for the power, which torch rounds correctly but for 1 value in 100. A number divided by
    a tensor is, in torch, the number times the tensor's reciprocal: two roundings.
    """
    scaling = spec.rope_scaling
    assert scaling is not None
    one = np.float32(1)
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    # numpy's own float32 power depends on the processor; this one is correctly rounded.
    base = float(np.float32(spec.rope_theta))
    powers = [math.pow(base, float(exponent)) for exponent in exponents]
    frequencies = one / np.array(powers, dtype=np.float32)
    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    factors: list[float] = []
    for frequency in frequencies:
        wavelength = (one / frequency) * np.float32(2 * math.pi)
        if wavelength < np.float32(original / high):
            factors.append(1.0)
        elif wavelength > np.float32(original / low):
            factors.append(scaling.factor)
        else:
            ratio = (one / wavelength) * np.float32(original)
            smooth = (ratio - np.float32(low)) / np.float32(high - low)
            blend = (one - smooth) / np.float32(scaling.factor) + smooth
            factors.append(float(one / blend))
    return tuple(factors)


def quantized_order(tensors: Sequence[OutputTensor]) -> list[OutputTensor]:
    """llama-quantize's order: outside the layers first, then by layer, names by their bytes."""

    def key(tensor: OutputTensor) -> tuple[int, bytes]:
        match = re.match(r"blk\.(\d+)\.", tensor.name)
        return (int(match[1]) if match else -1, tensor.name.encode())

    return sorted(tensors, key=key)


def quantized_fields(fields: Sequence[Field], file_type: int) -> list[Field]:
    """The converter's fields as llama-quantize leaves them, with its `file_type` at the end."""
    kept = [field for field in fields if field.key not in _LAST_FIELDS]
    version = [field for field in fields if field.key == _LAST_FIELDS[0]]
    return [*kept, *version, Field(_LAST_FIELDS[1], "u32", file_type)]


def plan_gguf(
    name: str,
    target: str,
    fields: Sequence[Field],
    tensors: Sequence[OutputTensor],
    *,
    max_file_bytes: int | None = None,
    warnings: tuple[str, ...] = (),
) -> PlannedArtifact:
    """Place `tensors` in `<name>.gguf`, in the order given.

    Where their data exceeds `max_file_bytes` they go into a folder `<name>` of files
    `<name>-00001-of-0000N.gguf`, as llama-gguf-split divides them: all fields in the first file,
    `split.*` in each.
    """
    groups = _split(tensors, max_file_bytes)
    if len(groups) == 1:
        file = _plan_file(f"{name}.gguf", fields, tensors)
        return PlannedArtifact(file.path, target, (file,), warnings=warnings)
    files = []
    for i, group in enumerate(groups):
        numbers = [
            Field("split.no", "u16", i),
            Field("split.tensors.count", "i32", len(tensors)),
            Field("split.count", "u16", len(groups)),
        ]
        path = f"{name}/{split_name(name, i, len(groups))}"
        files.append(_plan_file(path, [*(fields if i == 0 else ()), *numbers], group))
    return PlannedArtifact(name, target, tuple(files), is_folder=True, warnings=warnings)


def _data_bytes(tensor: OutputTensor) -> int:
    (part,) = tensor.parts
    return pad(part.size_bytes(tensor.rows))


def _split(tensors: Sequence[OutputTensor], max_file_bytes: int | None) -> list[list[OutputTensor]]:
    """Consecutive groups whose data fits; a tensor that alone does not fit is an error."""
    if max_file_bytes is None:
        return [list(tensors)]
    groups: list[list[OutputTensor]] = [[]]
    used = 0
    for tensor in tensors:
        size = _data_bytes(tensor)
        if size > max_file_bytes:
            raise InputError(
                f"{tensor.name}: takes {size:,} bytes, more than the {max_file_bytes:,} that"
                " --split-max-size allows a file"
            )
        if used + size > max_file_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += size
    return groups


def _plan_file(path: str, fields: Sequence[Field], tensors: Sequence[OutputTensor]) -> PlannedFile:
    infos, offset = [], 0
    for tensor in tensors:
        (part,) = tensor.parts
        infos.append(GGUFTensor(tensor.name, part.dtype, tensor.shape, offset))
        offset += _data_bytes(tensor)
    header = encode_header(fields, infos)
    placed = (
        PlacedTensor(tensor, (len(header) + info.offset,))
        for tensor, info in zip(tensors, infos, strict=True)
    )
    return PlannedFile(path, header, len(header) + offset, tuple(placed))
