"""What `quantization_config` says, in one form whatever wrote it: which modules, stored how.

In: config.json, parsed. Out: a `Quantization`: its groups (targets, format, strategy, bits) and
what it ignores. Three dialects are read: compressed-tensors (`config_groups`), AutoFP8
(`quant_method: fp8`, one scale a tensor) and DeepSeek's (`fp8` with `weight_block_size`, scales
named `weight_scale_inv` although they multiply). The latter two are given format names of their
own, `fp8` and `fp8-block`.

The fact a reader lacks: a target or an ignored name is a module name, a regular expression after
`re:`, or a class name; `Linear` means every matrix that is neither embedding nor norm, the head
included, so that a config without `lm_head` in `ignore` says that the head is quantized
(compressed_tensors.utils.match, 0.19). The two FP8 dialects leave head and routers out unsaid.
Nothing is opened here, and nothing refused: what cannot be understood is listed in `problems`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

COMPRESSED_TENSORS, FP8 = "compressed-tensors", "fp8"
_CLASS_TARGETS = ("Linear",)


class Role(StrEnum):
    """What a module is to a quantizer, by its name."""

    EMBEDDING = "embedding"
    HEAD = "head"
    NORM = "norm"
    ROUTER = "router"
    LINEAR = "linear"


def role_of(module: str) -> Role:
    """The role of a module of a decoder, whatever its family: by the last part of its name."""
    *path, last = module.split(".")
    if last in ("embed_tokens", "wte"):
        return Role.EMBEDDING
    if last in ("lm_head", "embed_out"):
        return Role.HEAD
    if last.endswith("norm"):
        return Role.NORM
    if last in ("gate", "router") and path and ("moe" in path[-1] or path[-1] == "mlp"):
        return Role.ROUTER
    return Role.LINEAR


@dataclass(frozen=True, slots=True)
class Group:
    """How the modules of one config group are stored.

    `local_input`: inputs get scales as they come, under a stored one for all of them (NVFP4).
    `actorder`: the order in which GPTQ rounded the columns; None where no such method is stated.
    """

    name: str
    targets: tuple[str, ...]
    format: str
    strategy: str
    num_bits: int
    group_size: int
    block: tuple[int, int]
    symmetric: bool
    static_input: bool
    local_input: bool = False
    actorder: str | None = None

    @property
    def scheme(self) -> tuple[str, str]:
        """What layouts are looked up by."""
        return self.format, self.strategy


@dataclass(frozen=True, slots=True)
class Quantization:
    """A whole `quantization_config`."""

    method: str
    groups: tuple[Group, ...]
    ignore: tuple[str, ...]
    kv_cache: Mapping[str, Any] | None
    problems: tuple[str, ...]

    def ignores(self, module: str) -> bool:
        """Whether the module is left in 16 bits by the config's own words."""
        if self.method == FP8 and role_of(module) in (Role.HEAD, Role.ROUTER):
            return True
        prefix = self.method == FP8  # there, a name covers what lies below it
        return any(_matches(entry, module, prefix=prefix) for entry in self.ignore)

    def group_of(self, module: str) -> Group | None:
        """The group that stores the module; None where none does, or it is ignored."""
        if self.ignores(module):
            return None
        linear = role_of(module) in (Role.LINEAR, Role.HEAD, Role.ROUTER)
        for by_class in (False, True):
            for group in self.groups:
                for target in group.targets:
                    named = _matches(target, module, prefix=False)
                    if (linear and target in _CLASS_TARGETS) if by_class else named:
                        return group
        return None


def _matches(entry: str, module: str, *, prefix: bool) -> bool:
    if entry.startswith("re:"):
        try:
            return re.match(entry[3:], module) is not None
        except re.error:
            return False
    return module == entry or (prefix and module.startswith(f"{entry}."))


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """The quantization that config.json states; None where it states none."""
    raw = config.get("quantization_config", config.get("compression_config"))
    if raw is None:
        return None
    if not isinstance(raw, dict):
        return Quantization("unknown", (), (), None, (f"quantization_config is {raw!r}",))
    method = str(raw.get("quant_method", COMPRESSED_TENSORS if "config_groups" in raw else ""))
    if method == COMPRESSED_TENSORS:
        return _compressed_tensors(raw)
    if method == FP8:
        return _fp8(raw)
    return Quantization(method or "unknown", (), (), None, (f"quant_method is {method!r}",))


def _compressed_tensors(raw: Mapping[str, Any]) -> Quantization:
    groups, problems = [], []
    stated = raw.get("config_groups")
    for name, entry in stated.items() if isinstance(stated, dict) else ():
        weights = entry.get("weights") if isinstance(entry, dict) else None
        if not isinstance(weights, dict):
            problems.append(f"config_groups.{name} has no weights")
            continue
        groups.append(_group(str(name), entry, weights, str(raw.get("format"))))
    if not groups:
        problems.append("config_groups names no scheme for weights")
    kv_cache = raw.get("kv_cache_scheme")
    return Quantization(
        method=COMPRESSED_TENSORS,
        groups=tuple(groups),
        ignore=_texts(raw.get("ignore")),
        kv_cache=kv_cache if isinstance(kv_cache, dict) else None,
        problems=tuple(problems),
    )


def _group(name: str, entry: Mapping[str, Any], weights: Mapping[str, Any], top: str) -> Group:
    inputs = entry.get("input_activations")
    strategy = weights.get("strategy")
    size = _number(weights.get("group_size"))
    if strategy is None:  # compressed-tensors' own default
        strategy = "group" if size > 0 else "channel" if size == -1 else "tensor"
    return Group(
        name=name,
        targets=_texts(entry.get("targets")),
        format=str(entry.get("format") or top),
        strategy=str(strategy),
        num_bits=_number(weights.get("num_bits"), 8),
        group_size=size,
        block=_block(weights.get("block_structure")),
        symmetric=weights.get("symmetric") is not False,
        static_input=isinstance(inputs, dict) and inputs.get("dynamic") is False,
        local_input=isinstance(inputs, dict) and inputs.get("dynamic") == "local",
        actorder=None if weights.get("actorder") is None else str(weights["actorder"]),
    )


def _fp8(raw: Mapping[str, Any]) -> Quantization:
    block = raw.get("weight_block_size")
    strategy = "block" if isinstance(block, list) else "tensor"
    group = Group(
        name=FP8,
        targets=("Linear",),
        format=FP8,
        strategy=strategy,
        num_bits=8,
        group_size=0,
        block=_block(block),
        symmetric=True,
        static_input=raw.get("activation_scheme") == "static",
    )
    ignore = _texts(raw.get("ignored_layers")) + _texts(raw.get("modules_to_not_convert"))
    return Quantization(FP8, (group,), ignore, None, ())


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, list) else ()


def _number(value: object, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _block(value: object) -> tuple[int, int]:
    """Rows and columns of a block; 128 x 128 where nothing sensible is said."""
    if isinstance(value, list) and len(value) == 2:
        rows, columns = _number(value[0]), _number(value[1])
        if rows > 0 and columns > 0:
            return rows, columns
    return 128, 128
