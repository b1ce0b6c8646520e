"""What a licence asks of whoever passes a model on, and whether a release does it.

In: the base model's licence id, the files beside its weights, the release's name. Out: the texts to
copy, the NOTICE and the line for the card, and one `Duty` for each thing that is asked.

Meta's community licences (section 1.b of Llama 3, 3.1, 3.2 and 3.3) ask for a copy of the
agreement, for "Built with Meta Llama 3" (from 3.1 on "Built with Llama") where people see it, for a
NOTICE file with a sentence of its own, and that the name of a model made with theirs begins with
"Llama 3" (from 3.1 on "Llama"). A quantization that keeps the name under which its base model was
published is told so and passes: that name is its maker's. Any other name must begin as asked.
Apache-2.0 (section 4) asks for a copy of the licence and for the NOTICE, if there is one.

This is a reading of licences by engineers, not legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convert.errors import InputError

NOTICE_NAME = "NOTICE"
_TEXTS = re.compile(r"(licen[sc]e|notice|use[_-]?policy|copying)", re.IGNORECASE)
_POLICY = re.compile(r"use[_-]?policy", re.IGNORECASE)
_LICENCE = re.compile(r"(licen[sc]e|copying)", re.IGNORECASE)
_NO_TEXT = (".json", ".jinja", ".safetensors", ".gguf", ".model", ".sig", ".pub")
_TAKEN = ("README.md", "SHA256SUMS", "merges.txt", "report.html", "junit.xml")
"""What lies in a repository, and is verified or written there: no text of a licence."""


@dataclass(frozen=True, slots=True)
class Llama:
    """What one of Meta's licences asks for, in its own words."""

    title: str
    beginning: str
    built_with: str

    @property
    def notice(self) -> str:
        """The sentence of the NOTICE file."""
        return (
            f"{self.title} is licensed under the {self.title} Community License, Copyright © Meta"
            " Platforms, Inc. All Rights Reserved."
        )


LLAMA: Mapping[str, Llama] = {
    "llama3": Llama("Meta Llama 3", "Llama 3", "Built with Meta Llama 3"),
    **{f"llama3.{n}": Llama(f"Llama 3.{n}", "Llama", "Built with Llama") for n in (1, 2, 3)},
}
_NEEDS_TEXT = ("apache-2.0", "mit", *LLAMA)


@dataclass(frozen=True, slots=True)
class Duty:
    """One thing a licence asks for: how it stands, and whether that is enough."""

    duty: str
    met: bool
    how: str


@dataclass(frozen=True, slots=True)
class Duties:
    """The licence of a release: texts to copy by name, what to write, and how each duty stands."""

    id: str
    texts: Mapping[str, Path]
    notice: str
    built_with: str
    duties: tuple[Duty, ...]

    def check(self) -> None:
        """InputError for the first duty that is not met."""
        for duty in self.duties:
            if not duty.met:
                raise InputError(f"licence {self.id}: {duty.duty}: {duty.how}")


def licence_texts(folder: Path) -> dict[str, Path]:
    """Licence, notice and use policy files of a checkpoint, by name."""
    if not folder.is_dir():
        return {}
    return {
        entry.name: entry
        for entry in sorted(folder.iterdir())
        if entry.is_file() and _TEXTS.match(entry.name) and entry.suffix in ("", ".txt", ".md")
    }


def duties_of(
    licence: str, texts: Mapping[str, Path], name: str, base_model: str, extra: Sequence[Path] = ()
) -> Duties:
    """What `licence` asks of a release called `name` of `base_model`, and how that stands."""
    licence = licence.lower()  # the hub's ids are; "Apache-2.0" asks for the same
    given = dict(texts)
    found: list[Duty] = []
    for path in extra:
        if path.suffix in _NO_TEXT or path.name in _TAKEN:
            how = "would take the place of a file of the model or the release; rename it"
            found.append(Duty(f"text {path.name}", False, how))
        elif path.is_file():
            given[path.name] = path
        else:
            found.append(Duty(f"text {path.name}", False, "the file that the recipe names is gone"))
    asked = LLAMA.get(licence)
    if licence.startswith("llama") and asked is None:
        raise InputError(
            f"licence.id: the duties of {licence!r} are not known here, those of"
            f" {', '.join(LLAMA)} are"
        )
    notice = asked.notice if asked else ""
    if licence in _NEEDS_TEXT:
        found.append(_text_duty(given))
    if asked:
        found += [
            Duty("attribution", True, f'"{asked.built_with}" is on the card'),
            Duty("notice", True, f"{NOTICE_NAME} holds: {notice}"),
            _policy_duty(given),
            _name_duty(asked, name, base_model),
        ]
    return Duties(licence, given, notice, asked.built_with if asked else "", tuple(found))


def _text_duty(texts: Mapping[str, Path]) -> Duty:
    names = [name for name in texts if _LICENCE.match(name)]
    if names:
        return Duty("copy of the licence", True, f"{', '.join(names)} copied")
    how = "no LICENSE beside the source; put its text beside the recipe and name it in"
    return Duty("copy of the licence", False, f"{how} licence.files")


def _policy_duty(texts: Mapping[str, Path]) -> Duty:
    names = [name for name in texts if _POLICY.match(name)]
    how = f"{', '.join(names)} copied" if names else "part of the agreement by reference"
    return Duty("acceptable use policy", True, how)


def _name_duty(asked: Llama, name: str, base_model: str) -> Duty:
    base = base_model.rpartition("/")[2]
    plain = re.sub(r"[-_ ]+", " ", name).casefold()
    duty = f"name begins with {asked.beginning!r}"
    if plain.startswith(asked.beginning.casefold()):
        return Duty(duty, True, name)
    if name.casefold().startswith(base.casefold()):
        return Duty(duty, True, f"keeps the published name of its base model, {base}")
    return Duty(duty, False, f"{name} does not, and is not the name of its base model, {base}")


def notice_text(duties: Duties) -> str | None:
    """The NOTICE of a release: the base model's own, and the licence's sentence if it lacks it."""
    there = duties.texts.get(NOTICE_NAME) or duties.texts.get(f"{NOTICE_NAME}.txt")
    try:
        own = there.read_text(encoding="utf-8") if there else ""
    except UnicodeDecodeError as error:
        raise InputError(
            f"{there}: not UTF-8, and a release's NOTICE is; save it as UTF-8"
        ) from error
    if not duties.notice or duties.notice in own:
        return own or None
    return f"{own.rstrip()}\n\n{duties.notice}\n".lstrip()
