"""The verb `release build`: from a recipe to verified, signed repositories.

In: a recipe (`recipe.py`) and an output folder. Out: a `Build`: every artifact with what was found
about it, and the release in place (`assemble.py`). The steps: look at the licence, devices and key
before any work; make what is missing (`make.py`); verify what was not verified (`gating.py`); put
together what passed. Each step is skipped where its fingerprint is known, so that the same command
again does only what changed, and one that was stopped goes on.

An artifact that fails its gate, or about which too little is known, is laid in quarantine; the
others are released all the same. With `only`, a part of the recipe is made and verified; a build
without it takes that over and puts the release together.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.memory import DEFAULT_MEMORY_BYTES
from convert.model import Model, open_model
from convert.workers import Progress, Steps
from quantize.calibration import read_calibration
from quantize.importance import read_importance
from verify.check import EXIT_CODES, total_state
from verify.one_artifact import OpenEngine
from verify.reference_cache import default_folder
from verify.release import signing
from verify.release.assemble import Contents, assemble
from verify.release.card import CardFacts, prompt_format
from verify.release.fits import check_devices, fit_rows
from verify.release.gating import Gated, gate_artifact, gate_inputs, joined
from verify.release.licence import Duties, duties_of, licence_texts
from verify.release.make import make_artifacts
from verify.release.placing import check_out, quarantine, withdraw
from verify.release.provenance import describe_source, source_files, tools
from verify.release.recipe import SIGNING_KEY, ArtifactSpec, ReadRecipe, read_recipe
from verify.release.steps import Work


@dataclass(frozen=True, slots=True)
class Build:
    """What a build came to; `left_out` are the artifacts that `only` did not name."""

    name: str
    gated: tuple[Gated, ...]
    left_out: tuple[str, ...]
    put_together: bool
    was_there: bool
    duties: Duties

    @property
    def exit_code(self) -> int:
        """0 all passed, 1 a gate failed, 3 not enough evidence about one."""
        return EXIT_CODES[total_state(gated.found.state for gated in self.gated)]


@dataclass(frozen=True, slots=True)
class Pace:
    """How a build uses the machine, and how it reports; no byte depends on it."""

    threads: int | None = None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    on_bytes: Progress | None = None
    on_prompts: Steps | None = None


def build(
    recipe: Path,
    out: Path,
    *,
    source: str | None = None,
    only: Sequence[str] = (),
    key: Path | None = None,
    cache: Path | None = None,
    pace: Pace | None = None,
    open_engine: OpenEngine | None = None,
) -> Build:
    """Make, verify and release what `recipe` asks for, in the folder `out`.

    `source` stands in for the recipe's (a folder where the same weights lie), `key` for its signing
    key. Raises InputError for what cannot be begun with.
    """
    read = read_recipe(recipe, source)
    wanted = choose(read, only)
    check_devices(read)
    check_out(out)
    with open_model(read.reference, read.recipe.name) as model:
        duties = licence_of(read, model)
        duties.check()
        whole = len(wanted) == len(read.recipe.artifacts)
        signing_key = find_key(read, key) if whole else None
        asked = gate_inputs(read, model.checkpoint.path)
        work, pace = Work.inside(out), pace or Pace()
        made = make_artifacts(
            read,
            wanted,
            model.checkpoint,
            work.artifacts,
            threads=pace.threads,
            memory_bytes=pace.memory_bytes,
            on_progress=pace.on_bytes,
        )
        files = source_files(model.checkpoint, work.source)
        gated = tuple(
            gate_artifact(
                read,
                one,
                work,
                checkpoint=model.checkpoint.path,
                source_files=files,
                asked=asked,
                cache=cache or default_folder(),
                open_engine=open_engine,
                on_progress=pace.on_prompts,
            )
            for one in made
        )
        quarantine(work, out, gated)
        left_out = tuple(a.target for a in read.recipe.artifacts if a not in wanted)
        passed = [one for one in gated if one.passed]
        new = False
        if not left_out and passed:
            contents = _contents(read, model, gated, files, asked, duties, signing_key, work)
            new = assemble(contents, work, out)
        elif not left_out:
            withdraw(out, work)
        put_together = bool(passed) and not left_out
        was_there = put_together and not new
        return Build(read.recipe.name, gated, left_out, put_together, was_there, duties)


def _contents(
    read: ReadRecipe,
    model: Model,
    gated: Sequence[Gated],
    files: Mapping[str, Any],
    asked: Mapping[str, Any],
    duties: Duties,
    key: Path | None,
    work: Work,
) -> Contents:
    """What the release is put together from."""
    return Contents(
        facts=_facts(read, gated, duties, model),
        source=describe_source(model, files),
        inputs={**asked, **_calibration(read)},
        tools=tools(),
        passed=[
            (one, fit_rows(read, work.artifacts / one.made.artifact.name))
            for one in gated
            if one.passed
        ],
        key=key,
    )


def choose(read: ReadRecipe, only: Sequence[str]) -> list[ArtifactSpec]:
    """The artifacts that `only` names, or all."""
    by_name = {artifact.target: artifact for artifact in read.recipe.artifacts}
    for name in only:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"--only {name}: the recipe has {', '.join(by_name)}{hint}")
    return [artifact for name, artifact in by_name.items() if not only or name in only]


def licence_of(read: ReadRecipe, model: Model) -> Duties:
    """The licence's duties towards this release."""
    stated = read.recipe.licence
    licence = stated.id or model.authorship.texts.get("general.license")
    if not licence:
        raise InputError(
            "licence: neither the recipe nor the model card of the source names one; set licence.id"
        )
    extra = [path for file in stated.files if (path := read.path(file)) is not None]
    texts = licence_texts(model.checkpoint.path)
    return duties_of(licence, texts, read.recipe.name, read.base_model, extra)


def find_key(read: ReadRecipe, key: Path | None) -> Path | None:
    """The private key to sign with; None for keyless signing or none."""
    asked = read.recipe.signing
    if asked is None or asked.method == "keyless":
        return None
    named = os.environ.get(SIGNING_KEY)
    found = key or read.path(asked.key) or (Path(named) if named else None)
    if found is None:
        raise InputError(
            f"signing: no key; pass --key FILE, set ${SIGNING_KEY} or name it in the recipe"
            " (`hermes-quant release key FILE` makes one)"
        )
    signing.read_key(found)
    return found


def _facts(read: ReadRecipe, gated: Sequence[Gated], duties: Duties, model: Model) -> CardFacts:
    withheld = [
        {
            "name": one.made.artifact.name,
            "target": one.made.artifact.target,
            "state": one.found.state.value,
            "reason": one.reason,
        }
        for one in gated
        if not one.passed
    ]
    return CardFacts(
        read=read,
        report=joined([one.report for one in gated]),
        duties=duties,
        revision=model.origin.revision,
        prompt=prompt_format(model.checkpoint.path),
        withheld=withheld,
    )


def _calibration(read: ReadRecipe) -> dict[str, Any]:
    """Importance matrices and calibrations that were used, by hash."""
    options = [read.recipe.options_of(artifact) for artifact in read.recipe.artifacts]
    matrices = {path for one in options if (path := read.imatrix(one)) is not None}
    folders = {path for one in options if (path := read.path(one.calibration)) is not None}
    found = [read_importance(path) for path in sorted(matrices)]
    entries = {
        "imatrix": [{"name": one.name, "sha256": one.sha256} for one in found],
        "calibration": [
            {"name": folder.name, "files": dict(read_calibration(folder).record["files"])}
            for folder in sorted(folders)
        ],
    }
    return {kind: listed for kind, listed in entries.items() if listed}
