"""Who made a model, from what, under which licence: the authorship fields of a GGUF header.

Three sources, later ones winning: the front matter of the model card (README.md), the repository
the checkpoint was downloaded from, and a `--metadata` file, a JSON object whose keys are GGUF's own
(`general.author`, `general.base_models`, ...), as llama.cpp's converter reads it.
`--name` wins over all. Nothing is taken from a folder's name or a local path; the converter guesses
`general.basename` and others from it, so its files differ unless a `--metadata` file pins them.

Out: `Authorship`, and its fields in the order in which the converter writes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convert.errors import CheckpointError, InputError
from convert.gguf import Field
from convert.model_spec import read_json_object

TEXT_KEYS = (
    "general.name",
    "general.author",
    "general.version",
    "general.organization",
    "general.finetune",
    "general.basename",
    "general.description",
    "general.quantized_by",
    "general.size_label",
    "general.license",
    "general.license.name",
    "general.license.link",
    "general.url",
    "general.doi",
    "general.uuid",
    "general.repo_url",
    "general.source.url",
    "general.source.doi",
    "general.source.uuid",
    "general.source.repo_url",
)
"""Text fields in the order of a file."""

_ANCESTOR_KEYS = (
    "name",
    "author",
    "version",
    "organization",
    "description",
    "url",
    "doi",
    "uuid",
    "repo_url",
)
_CARD_KEYS = {
    "model_name": "general.name",
    "model_creator": "general.author",
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}
_MAX_FRONT_MATTER, _MAX_DEPTH = 1 << 20, 32
_HUB = "https://huggingface.co/"
Ancestor = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Authorship:
    """Text fields by key, the models and data sets it descends from, tags and languages."""

    texts: Mapping[str, str] = field(default_factory=dict)
    base_models: tuple[Ancestor, ...] = ()
    datasets: tuple[Ancestor, ...] = ()
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    @property
    def name(self) -> str | None:
        """The model's name, if anything states it."""
        return self.texts.get("general.name")

    def fields(self, size_label: str) -> list[Field]:
        """The GGUF fields; `size_label` stands where none was given."""
        texts = {"general.size_label": size_label, **self.texts}
        fields = [Field(key, "str", texts[key]) for key in TEXT_KEYS if texts.get(key)]
        for what, ancestors in (("base_model", self.base_models), ("dataset", self.datasets)):
            if ancestors:
                fields.append(Field(f"general.{what}.count", "u32", len(ancestors)))
            fields += [
                Field(f"general.{what}.{i}.{key}", "str", ancestor[key])
                for i, ancestor in enumerate(ancestors)
                for key in _ANCESTOR_KEYS
                if ancestor.get(key)
            ]
        lists = (("general.tags", self.tags), ("general.languages", self.languages))
        return fields + [Field(key, "[str]", values) for key, values in lists if values]


def read_authorship(
    folder: Path,
    *,
    name: str | None = None,
    metadata: Path | None = None,
    repo: str | None = None,
    revision: str | None = None,
) -> Authorship:
    """The card of `folder`, then the repository, then the file `metadata`, then `name`."""
    found = _read_card(folder / "README.md")
    texts = dict(found.texts)
    if repo:
        texts["general.source.repo_url"] = _HUB + repo
        texts["general.source.url"] = f"{_HUB}{repo}/tree/{revision}"
    found = replace(found, texts=texts)
    if metadata is not None:
        found = _laid_over(found, metadata)
    return replace(found, texts={**found.texts, "general.name": name}) if name else found


def _read_card(path: Path) -> Authorship:
    """A card's front matter; a missing card or one without front matter is empty."""
    if not path.is_file():
        return Authorship()
    data = _front_matter(path)
    stated = {gguf: ",".join(_texts(data.get(key))) for key, gguf in _CARD_KEYS.items()}
    texts = {key: text for key, text in stated.items() if text}
    if "general.name" not in texts and (listed := _index_name(data.get("model-index"))):
        texts["general.name"] = listed
    return Authorship(
        texts=texts,
        base_models=tuple(_ancestor(reference) for reference in _texts(data.get("base_model"))),
        datasets=tuple(_ancestor(reference) for reference in _texts(data.get("datasets"))),
        tags=(*_texts(data.get("tags")), *_texts(data.get("pipeline_tag"))),
        languages=_texts(data.get("language")),
    )


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML at the head of a card, where `no` in a list is a language, as the converter has it.

    References are refused: keys merged through ten levels of ten of them are 10^10 keys. So is
    depth: the parser's time grows with its square.
    """
    import yaml
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    try:
        match = REGEX_YAML_BLOCK.search(path.read_text(encoding="utf-8"))
        block = f"{match[2]}\n".replace("- no\n", '- "no"\n').replace("\t", "  ") if match else ""
        if len(block) > _MAX_FRONT_MATTER:
            raise ValueError(f"{len(block)} characters; expected at most {_MAX_FRONT_MATTER}")
        depth = 0
        for event in yaml.parse(block, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("a reference (*name); write out what it stands for")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"more than {_MAX_DEPTH} levels deep")
        data = yaml.safe_load(block) or {}
        if not isinstance(data, dict):
            raise ValueError(f"a {type(data).__name__}, expected `key: value` lines")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise CheckpointError(f"{path}: the front matter cannot be read: {problem}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return data


def _index_name(index: object) -> str | None:
    entry = index[0] if isinstance(index, list) and index else None
    name = entry.get("name") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and name else None


def _texts(value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text for text in values if isinstance(text, str) and text)


def _ancestor(reference: str) -> Ancestor:
    """A hub id or a URL as name, organization and repository URL."""
    identifier = reference.removeprefix(_HUB)
    if "://" in identifier:
        return {"repo_url": reference}
    organization, _, model = identifier.rpartition("/")
    found = {"name": _title(model)}
    if organization:
        found["organization"] = _title(organization)
        found["repo_url"] = _HUB + identifier
    return found


def _title(name: str) -> str:
    """`hermes-3-8B` as `Hermes 3 8B`: words that are all lower case get a capital."""
    words = name.strip().replace("-", " ").split()
    version = re.compile(r"v\d+(\.\d+)*|\d.*")
    return " ".join(w.title() if w.islower() and not version.fullmatch(w) else w for w in words)


def _laid_over(found: Authorship, path: Path) -> Authorship:
    """`found` with what the `--metadata` file says instead."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; --metadata takes a JSON file")
    data = read_json_object(path)
    texts = dict(found.texts)
    lists: dict[str, Any] = {}
    for key, value in data.items():
        if key in TEXT_KEYS and isinstance(value, str):
            texts[key] = value
        elif key in ("general.tags", "general.languages") and _texts(value):
            lists[key.removeprefix("general.")] = _texts(value)
        elif key in ("general.base_models", "general.datasets"):
            lists[key.removeprefix("general.")] = _ancestors(path, key, value)
        else:
            raise InputError(
                f"{path}: {key}: {value!r} is not a known field; known: {', '.join(TEXT_KEYS)},"
                " general.base_models, general.datasets, general.tags, general.languages"
            )
    return replace(found, texts=texts, **lists)


def _ancestors(path: Path, key: str, value: object) -> tuple[Ancestor, ...]:
    entries: list[Any] = value if isinstance(value, list) else [value]
    for entry in entries:
        texts = entry.values() if isinstance(entry, dict) else [None]
        known = isinstance(entry, dict) and set(entry) <= set(_ANCESTOR_KEYS)
        if not known or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"{path}: {key}: expected a list of objects with {', '.join(_ANCESTOR_KEYS)}"
            )
    return tuple(entries)
