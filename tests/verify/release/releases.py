"""Small releases of a miniature, whose engines answer from a script: made in about a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from convert.rendering import Tokenizer
from tests.verify.test_verify import right, write_gate, write_suite
from verify.artifact import Artifact
from verify.engines import Engine
from verify.engines.scripted import ScriptedEngine
from verify.release.build import Build, build
from verify.release.reads import Pace
from verify.release.signing import make_key

TARGETS = ("FP8_DYNAMIC", "Q8_0", "Q4_K_M")

Open = Callable[[Artifact], Engine]


def write_recipe(folder: Path, checkpoint: Path, **changes: Any) -> Path:
    """A recipe with its suite, gate and licence text beside it; a change of None drops a key."""
    folder.mkdir(parents=True, exist_ok=True)
    write_suite(folder, 100)
    write_gate(folder)
    (folder / "LICENSE").write_text("Do as you please.\n")
    content = {
        "source": str(checkpoint),
        "name": "Mini",
        "base_model": "acme/Mini",
        "licence": {"id": "apache-2.0", "files": ["LICENSE"]},
        "artifacts": list(TARGETS),
        "gates": {"suite": "suite.jsonl", "gate": "gate.yaml"},
        "fit": {"devices": ["RTX 4090"], "context": "1k"},
        "signing": {"method": "key"},
        "publish": {"owner": "acme"},
        **changes,
    }
    path = folder / "release.yaml"
    stated = {k: v for k, v in content.items() if v is not None}
    path.write_text(yaml.safe_dump(json.loads(json.dumps(stated)), sort_keys=False))
    return path


def engines(source: Path, broken: Sequence[str] = ()) -> Open:
    """Engines that answer rightly; artifacts of the `broken` types never call a tool."""
    tokenizer = Tokenizer.open(source)

    def open_engine(artifact: Artifact) -> Engine:
        def reply(prompt: Sequence[int]) -> Sequence[int]:
            number = int(tokenizer.decode(prompt).split("call f with ")[1].split("<")[0])
            answer = "Of course.<|im_end|>" if artifact.type in broken else right(number)
            return tokenizer.encode(answer)

        return ScriptedEngine(reply)

    return open_engine


def key_in(folder: Path) -> Path:
    """A private key in `folder`."""
    path = folder / "key.pem"
    if not path.exists():
        make_key(path)
    return path


def build_recipe(
    recipe: Path, open_engine: Open, *, only: Sequence[str] = (), threads: int = 1
) -> Build:
    """Build a recipe into `dist` beside it."""
    folder = recipe.parent
    return build(
        recipe,
        folder / "dist",
        only=only,
        key=key_in(folder),
        cache=folder / "cache",
        pace=Pace(threads=threads),
        open_engine=open_engine,
    )


def build_in(
    folder: Path,
    source: Path,
    *,
    broken: Sequence[str] = (),
    only: Sequence[str] = (),
    threads: int = 1,
    **changes: Any,
) -> Build:
    """Build a recipe written in `folder`, into `folder/dist`."""
    recipe = write_recipe(folder, source, **changes)
    return build_recipe(recipe, engines(source, broken), only=only, threads=threads)
