"""The reads of a build: one for the plain artifacts, one for the edited ones, one for each control.

In: a recipe, its opened model, and which artifacts are wanted. Out: `AllMade`. Edits change what is
read, so each has a read and a folder of its own; a run that was stopped goes on in its own folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convert.memory import DEFAULT_MEMORY_BYTES
from convert.model import Model
from convert.workers import Progress, Steps
from verify.release.make import Made, Place, make_artifacts
from verify.release.recipe import ReadRecipe, Wanted
from verify.release.steps import Work


@dataclass(frozen=True, slots=True)
class Pace:
    """How a build uses the machine, and how it reports; no byte depends on it."""

    threads: int | None = None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    on_bytes: Progress | None = None
    on_prompts: Steps | None = None


@dataclass(frozen=True, slots=True)
class Making:
    """What the reads of one build share."""

    read: ReadRecipe
    model: Model
    work: Work
    pace: Pace

    def at(self, place: Place, wanted: Sequence[Wanted]) -> list[Made]:
        """Make artifacts at one place."""
        return make_artifacts(
            self.read,
            wanted,
            self.model,
            place,
            threads=self.pace.threads,
            memory_bytes=self.pace.memory_bytes,
            on_progress=self.pace.on_bytes,
        )


@dataclass(frozen=True, slots=True)
class AllMade:
    """The plain artifacts, the edited ones, and for each control what it made in their place."""

    plain: list[Made]
    edited: list[Made]
    controls: list[list[Made]]


def make_all(making: Making, wanted: Sequence[Wanted]) -> AllMade:
    """One read for the plain artifacts, one for the edited ones, one for each control."""
    read, work = making.read, making.work
    name = read.name_of(edited=False)
    plain = making.at(Place(work.artifacts, name), [one for one in wanted if not one.edited])
    through = [one for one in wanted if one.edited]
    if not through:
        return AllMade(plain, [], [])
    stated, name = read.abliteration, read.name_of(edited=True)
    edited = making.at(Place(work.edited, name, read.folder / stated.edit), through)
    controls = [
        Place(work.control(n), f"{name}-control-{n}", read.folder / path)
        for n, path in enumerate(stated.controls, start=1)
    ]
    return AllMade(plain, edited, [making.at(place, through) for place in controls])
