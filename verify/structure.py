"""Structure: is every tensor of the source in the artifact, once, in its shape, and nothing else?

In: the reference's headers and the artifact's. Out: an Outcome; no weight is read. A loader is no
substitute for this: transformers fills a missing weight with random numbers and llama.cpp computes
without `rope_freqs`, and both then answer fluently.

For a GGUF the expected names come from the family's rules, and what its header says of the model
is held against config.json (`gguf_header.py`). For a folder the names are the source's own; a
matrix that its config group quantizes must be stored as the group says, with all that lies beside
it, and config.json must say what the source's says, apart from how it is quantized. Where that
promises scales of a KV cache, every attention must have them. Whether the values are right is not
looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.families import family_of
from convert.gguf_plan import gguf_outputs
from convert.gguf_reader import read_gguf
from convert.model_spec import read_json_object
from verify.artifact import Artifact, Kind
from verify.check import Finding, Outcome, State, Verdict
from verify.evidence import Evidence
from verify.gguf_header import header_findings
from verify.layouts import cache_scale_places, layout_of, parts_of, stored_columns
from verify.quantization import Group, Role, read_quantization, role_of

NAME = "structure"
_LOADER_KEYS = ("quantization_config", "transformers_version")
Shapes = Mapping[str, tuple[int, ...]]


def check_structure(evidence: Evidence, /) -> Outcome:
    """Compare the artifact's tensors with the source's, by name and shape."""
    source = evidence.reference.checkpoint
    try:
        if evidence.artifact.kind is Kind.GGUF:
            file = read_gguf(evidence.artifact.path)
            expected: Shapes = expected_gguf_shapes(source)
            found: Shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
            findings = [*_compare(expected, found), *header_findings(source, file)]
        else:
            expected, found, findings = _look_at_folder(source, evidence.artifact)
    except InputError as error:
        verdict = Verdict(State.FAIL, "it cannot be read", {"findings": 1})
        return Outcome(NAME, verdict, (Finding(evidence.artifact.name, str(error)),))
    numbers = {
        "tensors_expected": len(expected),
        "tensors_right": sum(found.get(name) == shape for name, shape in expected.items()),
        "findings": len(findings),
    }
    if findings:
        reason = f"{len(findings)} things are not as the source says"
        return Outcome(NAME, Verdict(State.FAIL, reason, numbers), tuple(findings))
    return Outcome(NAME, Verdict(State.PASS, f"all {len(expected)} tensors in place", numbers))


def expected_gguf_shapes(source: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Names and row-major shapes that a GGUF of `source` must hold."""
    tensors = family_of(source.spec).recognise(source.spec, source.tensors)
    outputs = gguf_outputs(source.spec, tensors)
    return {output.tensor.name: output.tensor.shape for output in outputs}


def _compare(expected: Shapes, found: Shapes) -> Iterator[Finding]:
    for name, shape in expected.items():
        if name not in found:
            yield Finding(name, f"missing; the source has it in shape {list(shape)}")
        elif found[name] != shape:
            yield Finding(name, f"shape {list(found[name])}, expected {list(shape)}")
    for name in found:
        if name not in expected:
            yield Finding(name, "nothing in the source accounts for it")


def _look_at_folder(source: Checkpoint, artifact: Artifact) -> tuple[Shapes, Shapes, list[Finding]]:
    """Expected shapes, found shapes and findings of a folder."""
    with Checkpoint.open(artifact.path) as folder:
        found = {name: info.shape for name, info in folder.tensors.items()}
        stored = {name: info.dtype for name, info in folder.tensors.items()}
    quantization = read_quantization(read_json_object(artifact.path / "config.json"))
    expected: dict[str, tuple[int, ...]] = {}
    findings: list[Finding] = []
    matrices = 0
    for name, info in source.tensors.items():
        module = name.removesuffix(".weight")
        group = quantization.group_of(module) if quantization and module != name else None
        if role_of(module) is Role.ROUTER and stored.get(name) == info.dtype:
            group = None  # engines compute it in 16 bits, whether or not the config ignores it
        layout = layout_of(group) if group and len(info.shape) == 2 else None
        if group is None or layout is None:
            weight, shape = name, info.shape
            dtypes: tuple[str, ...] = (info.dtype,)
        else:
            weight, dtypes = f"{module}.{layout.weight}", layout.weight_dtypes
            matrices += stored.get(weight) in dtypes
            shape = (info.shape[0], stored_columns(layout, group, info.shape[1]))
            expected |= _expected_parts(module, group, (info.shape[0], info.shape[1]), found)
        expected[weight] = shape
        if stored.get(weight, dtypes[0]) not in dtypes:
            findings.append(Finding(weight, f"is {stored[weight]}, expected {' or '.join(dtypes)}"))
    if quantization and quantization.kv_cache:
        scales, missing = _cache_scales(source, quantization.kv_cache, found)
        expected |= scales
        findings += missing
    if artifact.kind is Kind.COMPRESSED and not matrices:
        findings.append(Finding(artifact.name, "config.json says quantized; no matrix is"))
    findings += _compare(expected, found)
    findings += _config_findings(source, artifact)
    return expected, found, findings


def _expected_parts(
    module: str, group: Group, shape: tuple[int, int], found: Shapes
) -> dict[str, tuple[int, ...]]:
    """What must lie beside a quantized matrix (out, in), by config.json."""
    parts: dict[str, tuple[int, ...]] = {}
    for part in parts_of(group, shape):
        name = f"{module}.{part.suffix}"
        if part.required or name in found:
            there = found.get(name)
            parts[name] = there if there in part.shapes else part.shapes[0]
    return parts


def _cache_scales(
    source: Checkpoint, scheme: Mapping[str, Any], found: Shapes
) -> tuple[dict[str, tuple[int, ...]], list[Finding]]:
    """Scales that a KV cache's scheme asks for, where they lie, and those that do not.

    Of one each for keys and values; with strategy attn_head, one for each head.
    """
    expected: dict[str, tuple[int, ...]] = {}
    missing: list[Finding] = []
    heads = source.spec.num_key_value_heads if scheme.get("strategy") == "attn_head" else 1
    for name in source.tensors:
        attention, _, last = name.rpartition(".k_proj.")
        if last != "weight":
            continue
        for letter in ("k", "v"):
            places = cache_scale_places(attention, letter)
            place = next((place for place in places if place in found), None)
            if place is not None:
                there = found[place]
                expected[place] = there if math.prod(there) == heads else (heads,)
            elif scheme.get("dynamic") is not True:
                message = "missing; kv_cache_scheme promises it, and vLLM would compute with 1.0"
                missing.append(Finding(places[0], message))
    return expected, missing


def _config_findings(source: Checkpoint, artifact: Artifact) -> Iterator[Finding]:
    """Keys of config.json that are not the source's."""
    ours = read_json_object(source.path / "config.json")
    theirs = read_json_object(artifact.path / "config.json")
    for key in sorted({*ours, *theirs} - set(_LOADER_KEYS)):
        if ours.get(key) != theirs.get(key):
            message = f"is {theirs.get(key)!r}, the source says {ours.get(key)!r}"
            yield Finding(f"config.json: {key}", message)
