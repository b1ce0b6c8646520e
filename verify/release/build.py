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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.model import Model, open_model
from quantize.calibration import read_calibration
from quantize.importance import read_importance
from verify.answer_cache import default_folder
from verify.check import EXIT_CODES, total_state
from verify.release.assemble import Contents, assemble
from verify.release.beforehand import choose, find_key, licence_of
from verify.release.card import CardFacts, prompt_format
from verify.release.fits import check_devices, fit_rows
from verify.release.gating import Gated, Verifying, gate_artifact, gate_inputs, joined
from verify.release.gating_edited import gate_edited, read_edit_inputs
from verify.release.licence import Duties
from verify.release.placing import check_out, quarantine, withdraw
from verify.release.provenance import describe_source, source_files, tools
from verify.release.reads import AllMade, Making, Pace, make_all
from verify.release.recipe import ReadRecipe, read_recipe
from verify.release.steps import Work
from verify.run_artifact import OpenEngine


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
        left_out = tuple(one.target for one in read.wanted() if one not in wanted)
        signing_key = None if left_out else find_key(read, key)
        asked = gate_inputs(read, model.checkpoint.path)
        edit = read_edit_inputs(read, model) if any(one.edited for one in wanted) else {}
        work = Work.inside(out)
        pace = pace or Pace()
        made = make_all(Making(read, model, work, pace), wanted)
        files = source_files(model.checkpoint, work.source)
        shared = Verifying(
            read,
            work,
            model.checkpoint.path,
            files,
            asked,
            cache or default_folder(),
            open_engine,
            pace.on_prompts,
        )
        gated = _gate_all(shared, made, edit)
        quarantine(out, gated)
        put_together = not left_out and any(one.passed for one in gated)
        new = False
        if put_together:
            contents = _contents(shared, model, gated, edit, duties, signing_key)
            new = assemble(contents, work, out)
        elif not left_out:
            withdraw(out, work)
        was_there = put_together and not new
        return Build(read.recipe.name, gated, left_out, put_together, was_there, duties)


def _gate_all(shared: Verifying, made: AllMade, edit: Mapping[str, Any]) -> tuple[Gated, ...]:
    """Everything verified: the plain artifacts, then the edited ones beside them."""
    gated = [gate_artifact(shared, one) for one in made.plain]
    twins = {one.made.wanted: one for one in gated}
    for number, one in enumerate(made.edited):
        beside = [control[number] for control in made.controls]
        gated.append(gate_edited(shared, one, twins[one.wanted.unedited], beside, edit))
    return tuple(gated)


def _contents(
    shared: Verifying,
    model: Model,
    gated: Sequence[Gated],
    edit: Mapping[str, Any],
    duties: Duties,
    key: Path | None,
) -> Contents:
    """What the release is put together from."""
    read, edited = shared.read, {"abliteration": edit} if edit else {}
    return Contents(
        facts=_facts(read, gated, duties, model, edit),
        source=describe_source(model, shared.source_files),
        inputs={**shared.asked, **_calibration(read), **edited},
        tools=tools(),
        passed=[(one, fit_rows(read, one.made.path)) for one in gated if one.passed],
        key=key,
    )


def _facts(
    read: ReadRecipe,
    gated: Sequence[Gated],
    duties: Duties,
    model: Model,
    edit: Mapping[str, Any],
) -> CardFacts:
    withheld = [
        {
            "name": one.made.artifact.name,
            "target": one.made.wanted.target,
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
        edit=edit.get("edit", {}),
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
