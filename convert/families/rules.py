"""Model families as rules: which tensors a model has, what they are called, what happens to them.

A family is a table of `Rule`s over one architecture's tensor names and says nothing else: it opens
no file and knows no number format. The map from Hugging Face names to GGUF names, its inverse, the
list of required tensors and the expected shapes are all computed from the table. A tensor that no
rule knows is an error, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from convert.errors import TensorError
from convert.model_spec import ModelSpec
from convert.tensor import TensorInfo

LINEAR_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
"""The matrices of a decoder layer: what a Linear-targeting scheme quantizes."""
FUSED = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "attn_q"),
    **dict.fromkeys(("ffn_gate", "ffn_up"), "ffn_gate"),
}
"""Roles whose matrices have one input, and which vLLM runs as one matrix, by the first of them."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of tensor.

    `hf` and `gguf` hold `{layer}` where the layer number goes; `hf` holds `{expert}` where tensors
    of several experts are stacked into one. `gguf` None means the tensor is dropped. `shape` names
    dimensions of `ModelSpec.size`. `interleave` asks for the Q/K row order.
    """

    hf: str
    gguf: str | None
    role: str
    shape: tuple[str, ...] = ()
    interleave: bool = False
    optional: bool = False

    def tensors(self, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Hugging Face names of its tensors in a model of this spec, each with its shape.

        One at a time: a hostile config.json may ask for any number of layers.
        """
        layers = range(spec.num_hidden_layers) if "{layer}" in self.hf else (0,)
        experts = range(spec.num_experts) if "{expert}" in self.hf else (0,)
        shape = tuple(spec.size(dimension) for dimension in self.shape)
        return ((self.hf.format(layer=i, expert=j), shape) for i in layers for j in experts)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A checkpoint tensor that a rule has recognised."""

    info: TensorInfo
    rule: Rule
    layer: int | None
    expert: int | None = None

    @property
    def gguf_name(self) -> str | None:
        """Its name in GGUF; None where it is dropped."""
        return None if self.rule.gguf is None else self.rule.gguf.format(layer=self.layer)


@dataclass(frozen=True, slots=True)
class Family:
    """The rules of one family and the architectures they cover."""

    name: str
    architectures: tuple[str, ...]
    gguf_architecture: str
    rules: tuple[Rule, ...]

    def recognise(self, spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> tuple[Tensor, ...]:
        """Match every tensor to a rule, in file order, and check presence and shapes.

        Raises TensorError for an unknown or missing tensor and for a shape that config.json denies.
        """
        patterns = [(rule, _pattern(rule.hf)) for rule in self.rules]
        found = [self._match(patterns, info) for info in tensors.values()]
        for tensor in found:
            _check(spec, tensor)
        self._check_complete(spec, tensors)
        return tuple(found)

    def _match(self, patterns: list[tuple[Rule, re.Pattern[str]]], info: TensorInfo) -> Tensor:
        for rule, pattern in patterns:
            if match := pattern.fullmatch(info.name):
                number = {key: int(text) for key, text in match.groupdict().items()}
                return Tensor(info, rule, number.get("layer"), number.get("expert"))
        raise TensorError(
            f"{info.name}: no tensor of this name is known in the {self.name} family (in"
            f" {info.file}); the checkpoint holds more than the architecture says"
        )

    def _check_complete(self, spec: ModelSpec, names: Iterable[str]) -> None:
        present = set(names)
        for name, _ in self.required(spec):
            if name not in present:
                raise TensorError(
                    f"{name}: missing; config.json asks for {spec.num_hidden_layers} layers and"
                    f" {'tied' if spec.tie_word_embeddings else 'untied'} embeddings"
                )

    def required(self, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Hugging Face names that a checkpoint of this spec must have, each with its shape."""
        for rule in self.rules:
            if not rule.optional and not (rule.role == "output" and spec.tie_word_embeddings):
                yield from rule.tensors(spec)


def _pattern(hf: str) -> re.Pattern[str]:
    number = r"(?P<\1>0|[1-9][0-9]{0,8})"  # int() refuses thousands of digits
    return re.compile(re.sub(r"\\{(layer|expert)\\}", lambda m: m.expand(number), re.escape(hf)))


def _check(spec: ModelSpec, tensor: Tensor) -> None:
    expected = tuple(spec.size(dimension) for dimension in tensor.rule.shape)
    if tensor.rule.shape and tensor.info.shape != expected:
        raise TensorError(
            f"{tensor.info.name}: shape {list(tensor.info.shape)} in {tensor.info.file}, but"
            f" config.json asks for {list(expected)} ({' x '.join(tensor.rule.shape)})"
        )
    for what, number, count in (
        ("layers", tensor.layer, spec.num_hidden_layers),
        ("experts", tensor.expert, spec.num_experts),
    ):
        if number is not None and number >= count:
            raise TensorError(f"{tensor.info.name}: config.json has only {count} {what}")
