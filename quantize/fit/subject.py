"""What is asked about: one model, and every artifact of it that exists or could be made.

In: a checkpoint folder, a GGUF file (any part of a split one), an FP8 folder, a release manifest, a
`config.json`, or a hub id. Out: a `Subject`. From 16- or 32-bit weights every target of `quantize`
is planned by the plan pass itself, so its size is exact to the byte; where only a config is there,
the family's rules say which tensors there are, and the sizes lack at most the vocabulary. Targets
that need an importance matrix are planned as if there were one.

What has no formula is named here and becomes *not modelled* downstream: unknown architectures,
sliding windows, hybrid attention, cache schemes other than FP8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, InputError, UnsupportedError
from convert.hub import Origin, is_on_disk, parse_hub_id
from convert.model import recognise_model
from convert.model_spec import read_json_object, read_model_spec
from quantize.fit import remote
from quantize.fit.candidate import Candidate, Subject, from_safetensors
from quantize.fit.gguf_subject import Groups, gguf_subject, read_gguf_subject, stem_of
from quantize.fit.makeable import headers_from_config, makeable

_FLOATS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def read_subject(reference: str, targets: Sequence[str] = ()) -> Subject:
    """Read what `reference` names; `targets` narrows what could be made."""
    if not is_on_disk(reference):
        return _from_hub(reference, targets)
    path = Path(reference)
    if path.is_dir():
        return _from_folder(path, reference, targets)
    if path.suffix == ".gguf":
        return read_gguf_subject([path], reference)
    if path.suffix == ".json":
        return _from_json(path, reference, targets)
    raise InputError(
        f"{reference}: expected a checkpoint folder, a .gguf file, a config.json, a release"
        " manifest or a hub id"
    )


def _from_folder(path: Path, reference: str, targets: Sequence[str]) -> Subject:
    if (path / "config.json").is_file():
        if not any(path.glob("*.safetensors*")):
            return _from_config(path / "config.json", reference, targets)
        with Checkpoint.open(path) as checkpoint:
            size = sum(stamp[0] for stamp in checkpoint.stamps.values())
            return _from_checkpoint(Origin(path), checkpoint, reference, targets, size)
    if (path / "manifest.json").is_file():
        return _from_json(path / "manifest.json", reference, targets)
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise InputError(f"{path}: holds no config.json, no manifest.json and no .gguf file")
    return read_gguf_subject(files, reference)


def _from_json(path: Path, reference: str, targets: Sequence[str]) -> Subject:
    content = read_json_object(path)
    if "artifacts" in content:
        return _from_manifest(path, content, reference)
    if "architectures" in content:
        return _from_config(path, reference, targets)
    raise InputError(f"{path}: neither a config.json (architectures) nor a manifest (artifacts)")


def _from_manifest(path: Path, content: dict[str, Any], reference: str) -> Subject:
    """The artifacts that a manifest lists, by the files that lie beside and below it."""
    listed = content["artifacts"]
    entries = [a if isinstance(a, dict) else {} for a in listed or ()]
    places = [entry.get("path", entry.get("name")) for entry in entries]
    if not places or not isinstance(listed, list) or not all(isinstance(p, str) for p in places):
        raise CheckpointError(f"{path}: artifacts is not a list of objects with a name")
    found: list[Subject] = []
    for stated in places:
        place = path.parent / str(stated)
        inside = not Path(str(stated)).is_absolute() and ".." not in Path(str(stated)).parts
        if not inside or not place.exists():
            raise CheckpointError(f"{path}: lists {stated!r}, which does not lie beside it")
        found.append(read_subject(str(place)))
    first = found[0]
    candidates = tuple(candidate for subject in found for candidate in subject.candidates)
    name = content.get("name")
    return Subject(
        name=name if isinstance(name, str) else first.name,
        reference=reference,
        spec=first.spec,
        candidates=candidates,
        unmodelled=first.unmodelled,
        window=first.window,
        kv_scheme=next((s.kv_scheme for s in found if s.kv_scheme), None),
    )


def _from_config(path: Path, reference: str, targets: Sequence[str]) -> Subject:
    spec = read_model_spec(path)
    if spec.quantization:
        raise UnsupportedError(
            f"{path}: describes a quantized model ({spec.quantization}), whose tensors only its"
            " headers name; give the folder or the hub id"
        )
    if path.name != "config.json":
        raise InputError(f"{path}: expected the name config.json")
    tensors = headers_from_config(spec, read_json_object(path))
    checkpoint = Checkpoint(path.parent, spec, ("model.safetensors",), tensors, {})
    return _from_checkpoint(
        Origin(path.parent), checkpoint, reference, targets, None, shards_known=False
    )


def _from_checkpoint(
    origin: Origin,
    checkpoint: Checkpoint,
    reference: str,
    targets: Sequence[str],
    size_bytes: int | None,
    *,
    shards_known: bool = True,
) -> Subject:
    spec, config = checkpoint.spec, read_json_object(checkpoint.path / "config.json")
    fallback = origin.repo.rpartition("/")[2] if origin.repo else origin.folder.resolve().name
    unmodelled, window = _attention(config)
    stored: str = spec.quantization or _FLOATS.get(str(spec.dtype), "BF16")
    notes: tuple[str, ...] = ()
    name = fallback
    made: tuple[Candidate, ...] = ()
    if spec.quantization is None:
        try:
            model = recognise_model(origin, checkpoint)
        except UnsupportedError as error:
            unmodelled = str(error)
        else:
            name = model.name
            made, notes = makeable(model, targets, shards_known=shards_known)
    place = str(origin.folder) if reference.endswith("config.json") else reference
    source = from_safetensors(
        name, _stored_target(config, stored), checkpoint.tensors.values(), size_bytes, place
    )
    return Subject(
        name=name,
        reference=place,
        spec=spec,
        candidates=(source, *made),
        unmodelled=unmodelled,
        window=window,
        kv_scheme=_kv_scheme(config),
        notes=notes,
    )


def _stored_target(config: dict[str, Any], stored: str) -> str:
    """The name of the scheme a folder is stored in, as its config words it."""
    groups = (config.get("quantization_config") or {}).get("config_groups")
    if isinstance(groups, dict) and groups and "group_0" not in groups:
        return str(next(iter(groups)))
    return stored


def _attention(config: dict[str, Any]) -> tuple[str | None, int | None]:
    """Why the attention has no formula, and the width of a sliding window."""
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and (others := sorted({str(k) for k in kinds} - {"full_attention"})):
        return f"hybrid attention ({', '.join(others)})", None
    window = config.get("sliding_window")
    if isinstance(window, int) and config.get("use_sliding_window") is not False:
        return None, window
    return None, None


def _kv_scheme(config: dict[str, Any]) -> str | None:
    """How the artifact itself says the KV cache is stored: `fp8`, or words that nothing models."""
    scheme = (config.get("quantization_config") or {}).get("kv_cache_scheme")
    if not isinstance(scheme, dict):
        return None
    if scheme.get("type") == "float" and scheme.get("num_bits") == 8:
        return "fp8"
    return json.dumps(scheme, sort_keys=True)


def _from_hub(reference: str, targets: Sequence[str]) -> Subject:
    listing = remote.list_repository(*parse_hub_id(reference))
    weights = [f for f in listing.named(".safetensors") if "/" not in f]
    if weights and "config.json" in listing.files:
        origin, checkpoint = remote.open_headers(listing)
        return _from_checkpoint(origin, checkpoint, reference, targets, None)
    files = listing.named(".gguf")
    if not files:
        raise CheckpointError(f"{reference}: the repository holds no safetensors and no GGUF files")
    groups: Groups = {}
    for file in files:
        place = f"hf:{listing.repo}/{file}"
        _, parts = groups.setdefault(stem_of(file.rpartition("/")[2]), (place, []))
        parts.append(remote.read_remote_gguf(listing, file))
    return gguf_subject(groups, reference)
