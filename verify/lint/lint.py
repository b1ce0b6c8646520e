"""The verb `lint`: one checkpoint folder, every finding about it, no reference and no GPU.

In: a folder (quantized or 16-bit, whatever tool made it). Out: a `LintReport`, its findings in the
order of the table in `lints.py`. Headers, config, index, tokenizer and templates are looked at
first, then every value once, in runs of bounded size. Raises CheckpointError for what is no
checkpoint at all; a checkpoint that is merely broken gets findings.
"""

from __future__ import annotations

from pathlib import Path

from verify.lint.agreement import lint_agreement
from verify.lint.cache import lint_cache
from verify.lint.contents import lint_contents
from verify.lint.files import lint_files
from verify.lint.finding import LintFinding, LintReport
from verify.lint.lints import LINTS
from verify.lint.parallel import lint_parallelism, plan_parallelism
from verify.lint.policy import lint_policy
from verify.lint.templates import lint_templates
from verify.lint.values import OnBytes, lint_values
from verify.stored_checkpoint import StoredCheckpoint, is_quantized, open_stored

_BY_HEADERS = (
    lint_policy,
    lint_agreement,
    lint_cache,
    lint_contents,
    lint_parallelism,
    lint_files,
    lint_templates,
)


def lint(path: Path, *, on_progress: OnBytes | None = None) -> LintReport:
    """Every finding about the checkpoint folder `path`; `on_progress` is told bytes and names."""
    stored = open_stored(path)
    findings: list[LintFinding] = []
    for look in _BY_HEADERS:
        findings += look(stored)
    findings += lint_values(stored, on_progress)
    rank = {name: i for i, name in enumerate(LINTS)}
    findings.sort(
        key=lambda found: (list(type(found.severity)).index(found.severity), rank[found.name])
    )
    return LintReport(
        name=path.resolve().name,
        stored=_stored_as(stored),
        tensors=len(stored.tensors),
        quantized=sum(is_quantized(module) for module in stored.modules.values()),
        shards=len(stored.shards),
        size_bytes=stored.size_bytes,
        tensor_parallel=plan_parallelism(stored).sizes,
        findings=tuple(findings),
    )


def _stored_as(stored: StoredCheckpoint) -> str:
    """The quantization in a few words."""
    quantization = stored.quantization
    if quantization is None:
        return "not quantized"
    groups = [f"{g.name} ({g.format}, {g.strategy})" for g in quantization.groups]
    return ", ".join([quantization.method, *groups])
