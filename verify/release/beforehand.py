"""What is settled before a build begins: which artifacts, under which licence, signed by which key.

In: a recipe and what the command line lays over it. Out: the artifacts to make, the licence's
duties, the key. Each raises InputError for what could not end well, before anything is made.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convert.errors import InputError
from convert.model import Model
from verify.release import signing
from verify.release.licence import Duties, duties_of, licence_texts
from verify.release.recipe import ReadRecipe, Wanted

SIGNING_KEY = "HERMES_QUANT_SIGNING_KEY"
"""The environment variable that names the private key where the recipe does not."""


def choose(read: ReadRecipe, only: Sequence[str]) -> list[Wanted]:
    """The artifacts that `only` names, or all; an edited one brings its unedited twin along."""
    by_name = {one.target: one for one in read.wanted()}
    for name in only:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"--only {name}: the recipe has {', '.join(by_name)}{hint}")
    named = {twin for name in only for twin in (by_name[name].target, by_name[name].spec.target)}
    return [one for name, one in by_name.items() if not only or name in named]


def licence_of(read: ReadRecipe, model: Model) -> Duties:
    """The licence's duties towards this release, under the names of plain and edited files."""
    stated = read.recipe.licence
    licence = stated.id or model.authorship.texts.get("general.license")
    if not licence:
        raise InputError(
            "licence: neither the recipe nor the model card of the source names one; set licence.id"
        )
    extra = [path for file in stated.files if (path := read.path(file)) is not None]
    texts = licence_texts(model.checkpoint.path)
    plain, edited = (
        duties_of(licence, texts, read.name_of(edited=edited), read.base_model, extra)
        for edited in (False, True)
    )
    more = [duty for duty in edited.duties if duty not in plain.duties]
    return replace(plain, duties=(*plain.duties, *more))


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
