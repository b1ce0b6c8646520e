"""The manifest of a release: what lies in it, where it comes from, what was found out about it.

In: gated artifacts and the parts of a release. Out: plain JSON values under `schema_version`,
described by `manifest.schema.json` beside this file; and `SHA256SUMS`, which `sha256sum -c` reads.

Paths are relative to the manifest's folder. The manifest lists every file but itself, SHA256SUMS
and the signature. Two builds of the same recipe differ in `created` and, in the manifest of a whole
release, in the hashes of its repositories' manifests, which hold it, their sums and signatures.
The schema's version rises when a reader who does not know of a change would be misled by it, and
other versions are refused: version 2 brought `edit`, without which an abliterated artifact would
pass for a quantization of the original.
`quantize.fit` reads `artifacts` (name and path) in `quantize/fit/subject.py`: change both together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from convert.errors import CheckpointError
from convert.model_spec import read_json_object
from convert.staging import hash_file
from verify.engines import EngineInfo
from verify.release.gating import Gated
from verify.release.gating_edited import unedited_of
from verify.release.licence import Duties
from verify.release.recipe import ReadRecipe
from verify.release.signing import SIGNATURE_NAME

MANIFEST_NAME, SUMS_NAME = "manifest.json", "SHA256SUMS"
SCHEMA_VERSION = 2
NOT_LISTED = (MANIFEST_NAME, SUMS_NAME, SIGNATURE_NAME)
"""What a manifest cannot hold the hash of: itself, and what is made from it."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A gated artifact in a release: where it lies, what it fits on."""

    gated: Gated
    path: str
    fit: Sequence[Mapping[str, Any]]


def artifact_entry(placed: Placed) -> dict[str, Any]:
    """One artifact, with every tensor's type and every check's outcome."""
    made, found = placed.gated.made, placed.gated.found
    artifact = made.artifact
    return {
        "name": artifact.name,
        "path": placed.path,
        "target": artifact.target,
        "kind": "gguf" if made.is_gguf else "compressed-tensors",
        "type": found.type,
        "size_bytes": made.planned.size_bytes,
        "bits_per_weight": round(8 * made.planned.size_bytes / made.parameters, 4),
        "edit": _edit(placed.gated),
        "recipe": artifact.recipe,
        "numerics": list(artifact.numerics),
        "values_changed": artifact.values_changed,
        "tensors": made.tensor_types,
        "verification": {
            "state": found.state.value,
            "gate_class": found.gate_class,
            "checks": [
                {"check": o.check, "state": o.verdict.state.value, "reason": o.verdict.reason}
                | {"numbers": dict(o.verdict.numbers)}
                for o in found.outcomes
            ],
            "engine": _engine(found.engine),
            "not_measured": list(found.not_measured),
        },
        "fit": [dict(row) for row in placed.fit],
    }


def _edit(gated: Gated) -> dict[str, Any] | None:
    """The edit that an artifact was made through, and what it was compared with."""
    if not gated.made.wanted.edited:
        return None
    sha256 = gated.made.artifact.recipe["edit"]["sha256"]
    return {"sha256": sha256, "unedited": unedited_of(gated)}


def _engine(info: EngineInfo | None) -> dict[str, Any] | None:
    if info is None:
        return None
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(info).items()}


def recipe_entry(read: ReadRecipe) -> dict[str, Any]:
    """The recipe as it was read, files by their names, keys left out."""
    content = read.recipe.model_dump(exclude_defaults=True, exclude={"signing", "publish"})
    named: dict[str, Any] = _names_of(content)
    if read.names_folder:
        named["source"] = read.base_model
    return named


def _names_of(value: Any) -> Any:
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): _names_of(item) for key, item in value.items()}
    return [_names_of(item) for item in value] if isinstance(value, (list, tuple)) else value


def licence_entry(duties: Duties) -> dict[str, Any]:
    """The licence and how its duties stand."""
    return {
        "id": duties.id,
        "texts": sorted(duties.texts),
        "duties": [asdict(duty) for duty in duties.duties],
    }


def listed_files(folder: Path, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every file below `folder` with size and sha256; `known` holds entries that were computed."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in NOT_LISTED:
            digest = known.get(name) or hash_file(path)
            size = path.stat().st_size
            found.append({"path": name, "size_bytes": size, "sha256": digest})
    return found


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json and SHA256SUMS, which also covers the manifest."""
    check_manifest(manifest, folder / MANIFEST_NAME)
    path = folder / MANIFEST_NAME
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (folder / SUMS_NAME).write_text(sums_text(manifest, hash_file(path)), encoding="utf-8")


def sums_text(manifest: Mapping[str, Any], own_sha256: str) -> str:
    """SHA256SUMS of a manifest and all that it lists."""
    entries = [(file["path"], file["sha256"]) for file in manifest["files"]]
    entries.append((MANIFEST_NAME, own_sha256))
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(entries))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in `folder`, valid under its schema."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {MANIFEST_NAME}; expected the folder of a release")
    manifest = read_json_object(path)
    check_manifest(manifest, path)
    return manifest


def check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """CheckpointError where a manifest is not what its schema says."""
    from jsonschema import Draft202012Validator

    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version is {version!r}; this version reads {SCHEMA_VERSION}"
        )
    schema = json.loads((files("verify.release") / "manifest.schema.json").read_text())
    error = next(iter(Draft202012Validator(schema).iter_errors(dict(manifest))), None)
    if error is not None:
        where = "/".join(str(part) for part in error.absolute_path) or "the file"
        raise CheckpointError(f"{path}: {where}: {error.message[:200]}")
