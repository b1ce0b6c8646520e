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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from convert.cast import Cast
from convert.families import Tensor
from convert.gguf import Field, GGUFTensor, encode_header, pad
from convert.model_spec import ModelSpec
from convert.output_tensor import HeadInterleave, OutputTensor, Scheme, Source
from convert.plan import PlacedTensor, PlannedArtifact, PlannedFile

ROPE_FREQS = "rope_freqs.weight"
_LAST_FIELDS = ("general.quantization_version", "general.file_type")


@dataclass(frozen=True, slots=True)
class GGUFOutput:
    """A tensor on its way into a GGUF file; `role` is the family's word for what it does."""

    tensor: OutputTensor
    role: str

    @property
    def is_matrix(self) -> bool:
        """Whether a 16-bit or quantized type applies to it; everything else is F32."""
        name = self.tensor.name
        matrix = len(self.tensor.shape) > 1 and name.endswith(".weight")
        return matrix and not name.endswith("_norm.weight")


def gguf_outputs(spec: ModelSpec, tensors: Sequence[Tensor]) -> list[GGUFOutput]:
    """The tensors of a GGUF file in the converter's order, all stored as F32 as yet."""
    outputs = [_output(spec, tensor) for tensor in tensors if tensor.rule.gguf is not None]
    if spec.rope_scaling is None:
        return outputs
    factors = rope_factors(spec)
    rope = OutputTensor(ROPE_FREQS, (len(factors),), "F32", Cast("F32"), computed=factors)
    return [GGUFOutput(rope, "rope_freqs"), *outputs]


def _output(spec: ModelSpec, tensor: Tensor) -> GGUFOutput:
    info, name = tensor.info, tensor.gguf_name
    assert name is not None
    order = HeadInterleave(spec.head_dim) if tensor.rule.interleave else None
    source = (Source(info, 0, info.rows),)
    output = OutputTensor(name, info.shape, info.dtype, Cast("F32"), source, order)
    return GGUFOutput(output, tensor.rule.role)


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
    warnings: tuple[str, ...] = (),
) -> PlannedArtifact:
    """Place `tensors` in a file called `name`, in the order given."""
    placed, offset = [], 0
    for tensor in tensors:
        (part,) = tensor.parts
        placed.append((tensor, part, offset))
        offset += pad(part.size_bytes(tensor.rows))
    infos = [GGUFTensor(t.name, part.dtype, t.shape, at) for t, part, at in placed]
    header = encode_header(fields, infos)
    file = PlannedFile(
        path=name,
        header=header,
        size_bytes=len(header) + offset,
        tensors=tuple(PlacedTensor(t, (len(header) + at,)) for t, _, at in placed),
    )
    return PlannedArtifact(name, target, (file,), warnings=warnings)
