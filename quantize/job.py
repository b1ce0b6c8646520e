"""The verb `quantize`: any number of targets from one read of the checkpoint.

Targets are the registry below: the 16- and 32-bit forms of `convert`, llama.cpp's mixtures, and
FP8_DYNAMIC for vLLM. A new target is one planner and one line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from convert import job
from convert.cast import Cast
from convert.gguf_plan import (
    GGUFOutput,
    plan_gguf,
    quantized_fields,
    quantized_order,
    with_schemes,
)
from convert.job import Job, Planner
from convert.model import FLOAT_FILE_TYPES, Model
from convert.output_tensor import Scheme
from convert.plan import PlannedArtifact
from convert.run import Progress
from quantize.compressed_tensors import plan_fp8
from quantize.ggml import Ggml
from quantize.mixture import MIXTURES, Choice, choose_types


def plan_mixture(model: Model, target: str) -> PlannedArtifact:
    """Plan `<name>-<target>.gguf` as llama-quantize would make it from the 16-bit file."""
    mixture = MIXTURES[target]
    outputs = model.gguf_outputs()
    order = {t.name: i for i, t in enumerate(quantized_order([o.tensor for o in outputs]))}
    outputs.sort(key=lambda output: order[output.tensor.name])
    choices = choose_types(model.checkpoint.spec, mixture, outputs)

    def scheme(output: GGUFOutput) -> Scheme:
        ggml_type = choices[output.tensor.name].ggml_type
        return Cast(ggml_type) if ggml_type in FLOAT_FILE_TYPES else Ggml(ggml_type)

    return plan_gguf(
        f"{model.name}-{target}.gguf",
        target,
        quantized_fields(model.gguf_fields(mixture.file_type), mixture.file_type),
        with_schemes(outputs, scheme),
        _fallback_warnings(choices.values()),
    )


def _fallback_warnings(choices: Iterable[Choice]) -> tuple[str, ...]:
    fallen = [choice for choice in choices if choice.instead_of]
    counts = Counter((choice.instead_of, choice.ggml_type) for choice in fallen)
    return tuple(
        f"{count} tensors have rows that do not divide into {wanted} blocks; stored as {used}"
        for (wanted, used), count in counts.items()
    )


def plan_fp8_dynamic(model: Model, target: str) -> PlannedArtifact:
    """Plan the folder `<name>-FP8_DYNAMIC`."""
    return plan_fp8(f"{model.name}-{target}", model.checkpoint, model.tensors)


PLANNERS: dict[str, Planner] = {
    "FP8_DYNAMIC": plan_fp8_dynamic,
    **dict.fromkeys(MIXTURES, plan_mixture),
    **job.PLANNERS,
}


def quantize(
    model: str,
    out: Path,
    targets: Sequence[str],
    *,
    name: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    on_progress: Progress | None = None,
) -> Job:
    """Make every target of `model` (folder or hub id) in the folder `out`, in one read."""
    return job.make(
        model,
        out,
        targets,
        PLANNERS,
        name=name,
        force=force,
        dry_run=dry_run,
        on_progress=on_progress,
    )
