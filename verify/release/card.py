"""The model card of one repository: README.md as the hub reads it, from what was measured.

In: the artifacts of a repository with their reports, the licence's duties, the recipe. Out: the
text, front matter first: `base_model`, `base_model_relation`, tags, licence. Every figure is one of
the report; what was only planned (the devices) is called so. The prompt format is what the model's
own chat template writes. A repository of edited artifacts says so first, and by what it was done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.conversation import Conversation
from convert.errors import HermesQuantError, InputError
from convert.job import EDITED, tool_version
from convert.rendering import Tokenizer
from verify.abliteration.contents import GateReport
from verify.abliteration.print_gate import card_text as removal_text
from verify.release.card_table import artifact_table, rate_words, verified_rows
from verify.release.gating_edited import pair_of
from verify.release.licence import Duties
from verify.release.manifest import Placed
from verify.release.recipe import ReadRecipe
from verify.release.signing import PUBLIC_KEY_NAME
from verify.report.contents import Report
from verify.report.shown import visible

if TYPE_CHECKING:
    from jinja2 import Template

CARD_NAME = "README.md"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What all cards of a release have in common."""

    read: ReadRecipe
    report: Report
    duties: Duties
    revision: str | None
    prompt: str
    withheld: Sequence[dict[str, str]]
    edit: Mapping[str, Any]
    """What is known of the edit; empty where nothing was edited."""


def card_text(facts: CardFacts, repository: str, placed: Sequence[Placed]) -> str:
    """The whole README.md of one repository."""
    recipe, duties = facts.read.recipe, facts.duties
    edited = placed[0].gated.made.wanted.edited
    front = _front_matter(facts, placed)
    devices = list(recipe.fit.devices)
    kinds = facts.report.reference.scores.kinds
    body = _template().render(
        title=repository,
        edited=edited,
        removal=_removal(facts, placed) if edited else "",
        table=artifact_table(placed, devices),
        verified=verified_rows(placed),
        about=recipe.card.about.strip(),
        sections=[_section(facts.read, path) for path in recipe.card.sections],
        built_with=duties.built_with,
        base_model=facts.read.base_model,
        revision=facts.revision,
        tool=tool_version(),
        devices=devices,
        context=f"{placed[0].fit[0]['context']:,}" if devices else "",
        reference_calls=rate_words(kinds.get("calls")) if "calls" in kinds else "",
        prompt=facts.prompt,
        commands=_commands(facts.read, repository, placed),
        suite=_suite(facts.report),
        gate_note=facts.report.gate.note,
        withheld=facts.withheld,
        signed=recipe.signing.method if recipe.signing else None,
        key_name=PUBLIC_KEY_NAME,
        licence_id=duties.id,
        texts=sorted(duties.texts),
        notice=duties.notice,
    )
    return f"---\n{front}---\n\n{body}"


def _removal(facts: CardFacts, placed: Sequence[Placed]) -> str:
    """What was done to the weights, by what, and what was measured, as `abliterate verify` says."""
    pairs = [pair_of(item.gated) for item in placed]
    limits = facts.read.abliteration.limits.stated()
    model, edit = facts.read.base_model, dict(facts.edit)
    return removal_text(GateReport(tool_version(), model, edit, {}, limits, tuple(pairs), ()))


def _section(read: ReadRecipe, stated: Path) -> str:
    path = read.folder / stated
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: named in card.sections, cannot be read: {error}") from error


def prompt_format(folder: Path) -> str:
    """A system and a user message as the model's template writes them."""
    messages = (
        {"role": "system", "content": "{system prompt}"},
        {"role": "user", "content": "{prompt}"},
    )
    tokenizer = Tokenizer.open(folder)
    try:
        return visible(tokenizer.render_text(Conversation("card", messages))).strip()
    except HermesQuantError as error:  # a model without a template is still a model
        return f"The model has no template that can be shown: {error}"
    finally:
        tokenizer.close()


def _front_matter(facts: CardFacts, placed: Sequence[Placed]) -> str:
    import yaml

    recipe, edited = facts.read.recipe, placed[0].gated.made.wanted.edited
    formats = {"gguf" if p.gated.made.is_gguf else "compressed-tensors" for p in placed}
    types = {p.gated.found.type for p in placed if not p.gated.made.is_gguf}
    eight = {"fp8"} if any(name.startswith("FP8") for name in types) else set()
    content: dict[str, Any] = {
        "base_model": facts.read.base_model,
        "base_model_relation": "finetune" if edited else recipe.relation,
        "license": facts.duties.id,
        "license_name": recipe.licence.name,
        "license_link": recipe.licence.link,
        "language": list(recipe.card.language) or None,
        "library_name": "transformers" if formats == {"compressed-tensors"} else None,
        "pipeline_tag": "text-generation",
        "quantized_by": recipe.card.quantized_by,
        "tags": sorted({*recipe.card.tags, *formats, *eight, *({EDITED} if edited else ())}),
    }
    stated = {key: value for key, value in content.items() if value}
    text: str = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _suite(report: Report) -> str:
    suite = report.suite
    return (
        f"{suite.used:,} of the {suite.available:,} conversations of the suite {suite.name},"
        f" {suite.with_tools:,} of them with tools."
    )


def _commands(read: ReadRecipe, repository: str, placed: Sequence[Placed]) -> list[str]:
    """What starts each artifact, from the hub where the owner is known, else from the folder."""
    owner = read.recipe.publish.owner
    place = f"{owner}/{repository}" if owner else repository
    lines = []
    for item in placed:
        name, made = item.gated.made.artifact.name, item.gated.made
        if made.is_gguf:
            first = made.artifact.files[0].path
            where = f"-hf {place}:{made.artifact.target}" if owner else f"-m {first}"
            lines.append(f"llama-server {where} --jinja    # {name}")
        elif item.path == ".":
            lines.append(f"vllm serve {place} --enable-auto-tool-choice --tool-call-parser hermes")
        else:
            if owner:
                lines.append(f'hf download {place} --include "{item.path}/*" --local-dir .')
            lines.append(
                f"vllm serve {item.path} --enable-auto-tool-choice --tool-call-parser hermes"
            )
    return lines


@cache
def _template() -> Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("verify.release", ""),
        autoescape=False,  # noqa: S701  markdown; what strangers wrote is made visible first
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    return environment.get_template("card.md.j2")
