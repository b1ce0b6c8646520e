"""Structure: is every tensor of the source in the artifact, once, in its shape, and nothing else?

In: the reference's headers and the artifact's. Out: an Outcome; no weight is read. A loader is no
substitute for this: transformers fills a missing weight with random numbers and llama.cpp computes
without `rope_freqs`, and both then answer fluently.

For a GGUF the expected names come from the family's rules, and the numbers in its header are held
against config.json. For a folder the names are the source's own; a matrix that its config group
quantizes must be stored as the group says, with all that lies beside it, and config.json must say
what the source's says, apart from how it is quantized. Whether the values are right is not looked
at here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import InputError
from convert.families import family_of
from convert.gguf_reader import GGUFFile, read_gguf
from convert.model_spec import ModelSpec, read_json_object
from verify.artifact import Artifact, Kind
from verify.check import Finding, Outcome, State, Verdict
from verify.evidence import Evidence
from verify.layouts import CACHE_SCALES, layout_of, parts_of, stored_columns
from verify.quantization import Group, read_quantization

NAME = "structure"
ROPE_FREQS = "rope_freqs.weight"
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
            findings = [*_compare(expected, found), *_header_findings(source.spec, file)]
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
    expected = {t.gguf_name: t.info.shape for t in tensors if t.gguf_name is not None}
    if source.spec.rope_scaling is not None:
        expected[ROPE_FREQS] = (source.spec.head_dim // 2,)
    return expected


def _compare(expected: Shapes, found: Shapes) -> Iterator[Finding]:
    for name, shape in expected.items():
        if name not in found:
            yield Finding(name, f"missing; the source has it in shape {list(shape)}")
        elif found[name] != shape:
            yield Finding(name, f"shape {list(found[name])}, expected {list(shape)}")
    for name in found:
        if name not in expected:
            yield Finding(name, "nothing in the source accounts for it")


def _header_findings(spec: ModelSpec, file: GGUFFile) -> Iterator[Finding]:
    """Where the numbers in a GGUF's header contradict config.json."""
    arch = family_of(spec).gguf_architecture
    expected: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": spec.num_hidden_layers,
        f"{arch}.context_length": spec.max_position_embeddings,
        f"{arch}.embedding_length": spec.hidden_size,
        f"{arch}.feed_forward_length": spec.intermediate_size,
        f"{arch}.attention.head_count": spec.num_attention_heads,
        f"{arch}.attention.head_count_kv": spec.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": spec.rms_norm_eps,
        f"{arch}.rope.freq_base": spec.rope_theta,
    }
    for key, value in expected.items():
        found = file.fields.get(key)
        if not _same_number(found, value):
            yield Finding(key, f"is {found!r}, config.json says {value!r}")


def _same_number(found: Any, expected: Any) -> bool:
    """Equal, floats as far as the 32 bits that GGUF keeps of them."""
    if isinstance(expected, float) and isinstance(found, (int, float)):
        return math.isclose(found, expected, rel_tol=2**-23)
    return bool(found == expected)


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
        expected |= {name: found[name] for name in found if name.endswith(CACHE_SCALES)}
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


def _config_findings(source: Checkpoint, artifact: Artifact) -> Iterator[Finding]:
    """Keys of config.json that are not the source's."""
    ours = read_json_object(source.path / "config.json")
    theirs = read_json_object(artifact.path / "config.json")
    for key in sorted({*ours, *theirs} - set(_LOADER_KEYS)):
        if ours.get(key) != theirs.get(key):
            message = f"is {theirs.get(key)!r}, the source says {ours.get(key)!r}"
            yield Finding(f"config.json: {key}", message)
