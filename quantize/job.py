"""The verb `quantize`: any number of targets from one read of the checkpoint.

Targets are the registry below: the 16- and 32-bit forms of `convert`, llama.cpp's mixtures, and
FP8_DYNAMIC for vLLM. A new target is one planner and one line. `Options` says what applies to all
GGUF targets: an imatrix, and llama-quantize's overrides of the mixture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from convert import job
from convert.cast import Cast
from convert.errors import InputError
from convert.gguf_plan import (
    GGUFOutput,
    plan_gguf,
    quantized_fields,
    quantized_order,
    with_schemes,
)
from convert.job import Job, Planner
from convert.model import FLOAT_FILE_TYPES, Model
from convert.output_tensor import OutputTensor, Scheme
from convert.plan import PlannedArtifact
from convert.run import Progress
from quantize.compressed_tensors import plan_fp8
from quantize.ggml import Ggml
from quantize.importance import ImportanceFile, importance_for, read_importance
from quantize.mixture import (
    MIXTURES,
    NO_OVERRIDES,
    Choice,
    Overrides,
    choose_types,
    needs_importance,
)


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
    """Plan `<name>-<target>.gguf` as llama-quantize would make it from the 16-bit file."""
    mixture = MIXTURES[target]
    outputs = model.gguf_outputs()
    order = {t.name: i for i, t in enumerate(quantized_order([o.tensor for o in outputs]))}
    outputs.sort(key=lambda output: order[output.tensor.name])
    choices = choose_types(
        model.checkpoint.spec,
        mixture,
        outputs,
        importance=options.importance is not None,
        overrides=options.overrides,
    )
    importance = importance_for(options.importance, outputs) if options.importance else {}
    for output in outputs:
        choice = choices.get(output.tensor.name)
        if choice is None or choice.ggml_type is None or output.tensor.name in importance:
            continue
        if needs_importance(mixture, output.role, choice):
            raise InputError(
                f"{target} stores {output.tensor.name} as {choice.ggml_type}, which needs an"
                " imatrix for it; pass --imatrix FILE"
            )

    def scheme(output: GGUFOutput) -> Scheme:
        ggml_type = choices[output.tensor.name].ggml_type or output.tensor.dtype
        return Cast(ggml_type) if ggml_type in FLOAT_FILE_TYPES else Ggml(ggml_type)

    def weighted(tensor: OutputTensor) -> OutputTensor:
        if tensor.name not in importance or not isinstance(tensor.scheme, Ggml):
            return tensor
        return replace(tensor, importance=importance[tensor.name])

    return plan_gguf(
        f"{model.name}-{target}",
        target,
        quantized_fields(model.gguf_fields(mixture.file_type), mixture.file_type),
        [weighted(tensor) for tensor in with_schemes(outputs, scheme)],
        max_file_bytes=options.max_file_bytes,
        warnings=(*_fallback_warnings(choices.values()), *_override_warnings(outputs, choices)),
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


def plan_fp8_dynamic(model: Model, target: str, options: Options) -> PlannedArtifact:
    """Plan the folder `<name>-FP8_DYNAMIC`."""
    return plan_fp8(f"{model.name}-{target}", model.checkpoint, model.tensors)


def planners(options: Options) -> dict[str, Planner]:
    """Every target by name."""
    return {
        "FP8_DYNAMIC": partial(plan_fp8_dynamic, options=options),
        **dict.fromkeys(MIXTURES, partial(plan_mixture, options=options)),
        **job.planners(options.max_file_bytes),
    }


def quantize(
    model: str,
    out: Path,
    targets: Sequence[str],
    *,
    imatrix: Path | None = None,
    overrides: Overrides = NO_OVERRIDES,
    max_file_bytes: int | None = None,
    name: str | None = None,
    metadata: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Job:
    """Make every target of `model` (folder or hub id) in the folder `out`, in one read."""
    importance = read_importance(imatrix) if imatrix else None
    options = Options(importance, overrides, max_file_bytes)
    return job.make(
        model,
        out,
        targets,
        planners(options),
        name=name,
        metadata=metadata,
        recipe=options.recipe(),
        force=force,
        dry_run=dry_run,
        on_progress=on_progress,
    )
