"""The model card of one repository: README.md as the hub reads it, from what was measured.

In: the artifacts of a repository with their reports, the licence's duties, the recipe. Out: the
text, front matter first: `base_model`, `base_model_relation`, tags, licence. Every figure is one of
the report; what was only planned (the devices) is called so. The prompt format is what the model's
own chat template writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.conversation import Conversation
from convert.errors import HermesQuantError, InputError
from convert.job import tool_version
from convert.rendering import Tokenizer
from convert.terminal import readable_size
from verify.release.licence import Duties
from verify.release.manifest import Placed
from verify.release.recipe import ReadRecipe
from verify.release.signing import PUBLIC_KEY_NAME
from verify.report.contents import ArtifactReport, Report
from verify.report.shown import visible
from verify.statistics import Rate

if TYPE_CHECKING:
    from jinja2 import Template

CARD_NAME = "README.md"
_DASH = "-"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What all cards of a release have in common."""

    read: ReadRecipe
    report: Report
    duties: Duties
    revision: str | None
    prompt: str
    withheld: Sequence[dict[str, str]]


def card_text(facts: CardFacts, repository: str, placed: Sequence[Placed]) -> str:
    """The whole README.md of one repository."""
    recipe, duties = facts.read.recipe, facts.duties
    front = _front_matter(facts, placed)
    devices = list(recipe.fit.devices)
    kinds = facts.report.reference.scores.kinds
    body = _template().render(
        title=repository,
        about=recipe.card.about.strip(),
        sections=[_section(facts.read, path) for path in recipe.card.sections],
        built_with=duties.built_with,
        base_model=facts.read.base_model,
        revision=facts.revision,
        tool=tool_version(),
        devices=devices,
        context=f"{placed[0].fit[0]['context']:,}" if devices else "",
        rows=[_row(item, devices) for item in placed],
        reference_calls=_rate(kinds.get("calls")) if "calls" in kinds else "",
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

    recipe = facts.read.recipe
    formats = {"gguf" if p.gated.made.is_gguf else "compressed-tensors" for p in placed}
    types = {p.gated.found.type for p in placed if not p.gated.made.is_gguf}
    eight = {"fp8"} if any(name.startswith("FP8") for name in types) else set()
    content: dict[str, Any] = {
        "base_model": facts.read.base_model,
        "base_model_relation": recipe.relation,
        "license": facts.duties.id,
        "license_name": recipe.licence.name,
        "license_link": recipe.licence.link,
        "language": list(recipe.card.language) or None,
        "library_name": "transformers" if formats == {"compressed-tensors"} else None,
        "pipeline_tag": "text-generation",
        "quantized_by": recipe.card.quantized_by,
        "tags": sorted({*recipe.card.tags, *formats, *eight}),
    }
    stated = {key: value for key, value in content.items() if value}
    text: str = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True, width=1000)
    return text


def _row(placed: Placed, devices: Sequence[str]) -> dict[str, Any]:
    found = placed.gated.found
    made = placed.gated.made
    numbers = {o.check: o.verdict.numbers for o in found.outcomes}
    kl = numbers.get("reply_kl", {}).get("kl")
    fits = {row["device"]: _fits(row) for row in placed.fit}
    return {
        "file": found.name if placed.path == "." else placed.path,
        "type": found.type,
        "size": readable_size(made.planned.size_bytes),
        "bits": f"{8 * made.planned.size_bytes / made.parameters:.2f}",
        "kl": f"{kl:.2g}" if isinstance(kl, float) else _DASH,
        "calls": _rate(found.scores.kinds.get("calls")) if found.scores else _DASH,
        "same": _same_calls(found),
        "fits": {device: fits.get(device, _DASH) for device in devices},
        "engine": f"{found.engine.name} {found.engine.version}" if found.engine else _DASH,
        "weights": _weights(found),
    }


def _fits(row: dict[str, Any] | Any) -> str:
    context = row["largest_context"]
    most = f", up to {context:,} tokens" if row["verdict"] == "fits" and context else ""
    return f"{row['verdict']}{most}"


def _rate(rate: Rate | None) -> str:
    if rate is None or rate.value is None:
        return _DASH
    return f"{rate.hits} of {rate.total} ({100 * rate.value:.1f} %)"


def _same_calls(found: ArtifactReport) -> str:
    for outcome in found.outcomes:
        numbers = outcome.verdict.numbers
        if outcome.check == "agreement" and "same_calls" in numbers:
            return f"{numbers['same_calls']} of {numbers['with_tools']}"
    return _DASH


def _weights(found: ArtifactReport) -> str:
    checks = [o for o in found.outcomes if o.check in ("weights", "gguf_weights")]
    return checks[0].verdict.reason if checks else "not compared one by one"


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
