"""The GGUF targets: a published mixture, one's own, or the best that fits a size.

In: an opened model and `Options`. Out: a planned `<name>-<target>.gguf`. The three differ only in
how the type of each matrix is chosen; importance, overrides, splitting and the header are the same
for all. A published mixture's file is what llama-quantize would make from the 16-bit file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from convert.errors import InputError
from convert.gguf_plan import (
    GGUFOutput,
    plan_gguf,
    quantized_fields,
    quantized_order,
    with_schemes,
)
from convert.model import Model
from convert.output_tensor import Importance, OutputTensor
from convert.plan import PlannedArtifact
from convert.workers import Progress
from quantize.choice import NO_OVERRIDES, Choice, Overrides, needs_importance
from quantize.ggml import Ggml
from quantize.importance import ImportanceFile, importance_for
from quantize.mixture import choose_types, mixture_needs_importance
from quantize.mixture_table import MIXTURES
from quantize.own_mixture import OwnMixture, choose_own_types, commonest_file_type
from quantize.size_target import (
    Candidate,
    SizeTarget,
    choose_to_fit,
    measure_candidates,
    scheme_of,
)

NeedsImportance = Callable[[str, str | None], bool]


@dataclass(frozen=True, slots=True)
class Options:
    """What applies to every GGUF mixture of a run."""

    importance: ImportanceFile | None = None
    overrides: Overrides = NO_OVERRIDES
    max_file_bytes: int | None = None

    def recipe(self) -> dict[str, Any]:
        """What the sidecar records: the imatrix by its hash, the overrides as given."""
        found: dict[str, Any] = {}
        if self.importance is not None:
            found["imatrix_sha256"] = self.importance.sha256
        if self.overrides != NO_OVERRIDES:
            found["overrides"] = asdict(self.overrides)
        if self.max_file_bytes is not None:
            found["max_file_bytes"] = self.max_file_bytes
        return found


def plan_mixture(model: Model, target: str, options: Options) -> PlannedArtifact:
    """Plan a published mixture, as llama-quantize would make it from the 16-bit file."""
    mixture = MIXTURES[target]
    outputs = _ordered_outputs(model)
    choices = choose_types(
        model.checkpoint.spec,
        mixture,
        outputs,
        importance=options.importance is not None,
        overrides=options.overrides,
    )
    return _plan(
        model,
        target,
        outputs,
        choices,
        options,
        file_type=mixture.file_type,
        needs=lambda role, ggml_type: mixture_needs_importance(mixture, role, ggml_type),
        warnings=_override_warnings(outputs, choices),
    )


def plan_own_mixture(
    model: Model, target: str, options: Options, mixture: OwnMixture
) -> PlannedArtifact:
    """Plan a mixture from a file."""
    outputs = _ordered_outputs(model)
    choices = choose_own_types(mixture, outputs, options.overrides)
    return _plan(model, mixture.name, outputs, choices, options)


def plan_size_target(
    model: Model,
    target: str,
    options: Options,
    size: SizeTarget,
    *,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> PlannedArtifact:
    """Plan the mixture with the least error that fits `size`, all files and headers counted."""
    outputs = _ordered_outputs(model)
    importance = importance_for(options.importance, outputs) if options.importance else {}
    candidates = measure_candidates(
        model.checkpoint,
        outputs,
        importance,
        options.overrides,
        threads=threads,
        on_progress=on_progress,
    )
    limit = size.limit_bytes(model.parameters)
    smallest = {name: min(found, key=lambda c: c.size_bytes) for name, found in candidates.items()}
    planned = _plan_candidates(model, target, outputs, smallest, options)
    rest = planned.size_bytes - sum(c.size_bytes for c in smallest.values())
    if planned.size_bytes > limit:
        raise InputError(
            f"{target}: this model takes at least {planned.size_bytes:,} bytes, in the smallest"
            f" types that can be chosen; {limit:,} were asked for"
        )
    while True:  # how many files there are, and so the bytes of headers, depends on the choice
        chosen = choose_to_fit(candidates, limit - rest)
        planned = _plan_candidates(model, target, outputs, chosen, options)
        if planned.size_bytes <= limit:
            notes = _size_notes(model, outputs, options, candidates, chosen, limit - rest)
            return replace(planned, notes=notes)
        rest += planned.size_bytes - limit


def _plan_candidates(
    model: Model,
    target: str,
    outputs: Sequence[GGUFOutput],
    chosen: Mapping[str, Candidate],
    options: Options,
) -> PlannedArtifact:
    choices = {name: candidate.choice for name, candidate in chosen.items()}
    return _plan(model, target, outputs, choices, options)


def _size_notes(
    model: Model,
    outputs: Sequence[GGUFOutput],
    options: Options,
    candidates: Mapping[str, Sequence[Candidate]],
    chosen: Mapping[str, Candidate],
    limit_bytes: int,
) -> tuple[str, ...]:
    """What was chosen, its error, and the best published mixture that fits too."""
    counts = Counter(candidate.choice.ggml_type for candidate in chosen.values())
    error = sum(candidate.error for candidate in chosen.values())
    types = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    notes = [f"chosen by measured error: {types}; sum of relative squared errors {error:.4g}"]
    spec, weighted = model.checkpoint.spec, options.importance is not None
    published = []
    for mixture in MIXTURES.values():
        types_of = choose_types(spec, mixture, outputs, importance=weighted)
        known = [
            next((c for c in candidates[name] if c.choice.ggml_type == choice.ggml_type), None)
            for name, choice in types_of.items()
        ]
        rows = [candidate for candidate in known if candidate is not None]
        if len(rows) == len(known) and sum(c.size_bytes for c in rows) <= limit_bytes:
            published.append((sum(c.error for c in rows), mixture.name))
    if published:
        theirs, name = min(published)
        notes.append(f"the best published mixture that fits, {name}, has {theirs:.4g}")
    return tuple(notes)


def _ordered_outputs(model: Model) -> list[GGUFOutput]:
    """The model's tensors in llama-quantize's order."""
    outputs = model.gguf_outputs()
    order = {t.name: i for i, t in enumerate(quantized_order([o.tensor for o in outputs]))}
    return sorted(outputs, key=lambda output: order[output.tensor.name])


def _plan(
    model: Model,
    target: str,
    outputs: Sequence[GGUFOutput],
    choices: Mapping[str, Choice],
    options: Options,
    *,
    file_type: int | None = None,
    needs: NeedsImportance = needs_importance,
    warnings: tuple[str, ...] = (),
) -> PlannedArtifact:
    """The file in which every matrix has its chosen type."""
    importance = importance_for(options.importance, outputs) if options.importance else {}
    _refuse_without_importance(target, outputs, choices, importance, needs)

    def weighted(tensor: OutputTensor) -> OutputTensor:
        if tensor.name not in importance or not isinstance(tensor.scheme, Ggml):
            return tensor
        return replace(tensor, importance=importance[tensor.name])

    tensors = with_schemes(outputs, lambda o: scheme_of(o.tensor, choices[o.tensor.name]))
    number = commonest_file_type(outputs, choices) if file_type is None else file_type
    return plan_gguf(
        f"{model.name}-{target}",
        target,
        quantized_fields(model.gguf_fields(number), number),
        [weighted(tensor) for tensor in tensors],
        max_file_bytes=options.max_file_bytes,
        warnings=(*_fallback_warnings(choices.values()), *warnings),
    )


def _refuse_without_importance(
    target: str,
    outputs: Sequence[GGUFOutput],
    choices: Mapping[str, Choice],
    importance: Mapping[str, Importance],
    needs: NeedsImportance,
) -> None:
    for output in outputs:
        choice = choices.get(output.tensor.name)
        if choice is None or choice.ggml_type is None or output.tensor.name in importance:
            continue
        if needs(output.role, choice.ggml_type):
            raise InputError(
                f"{target} stores {output.tensor.name} as {choice.ggml_type}, which needs an"
                " imatrix for it; pass --imatrix FILE"
            )


def _fallback_warnings(choices: Iterable[Choice]) -> tuple[str, ...]:
    fallen = [choice for choice in choices if choice.instead_of]
    counts = Counter((choice.instead_of, choice.ggml_type) for choice in fallen)
    return tuple(
        f"{count} tensors have rows that do not divide into {wanted} blocks; stored as {used}"
        for (wanted, used), count in counts.items()
    )


def _override_warnings(
    outputs: Sequence[GGUFOutput], choices: Mapping[str, Choice]
) -> tuple[str, ...]:
    """llama-quantize's counters skip overridden tensors, which moves the mixture of the rest."""
    counted = [o for o in outputs if o.role == "attn_v" or o.role.startswith("ffn_")]
    skipped = [o for o in counted if choices[o.tensor.name].overridden]
    if not skipped or len(skipped) == len(counted):
        return ()
    return (
        f"--tensor-type names {len(skipped)} tensors that a mixture counts; as in llama-quantize,"
        " this moves the types of other layers' tensors too",
    )
