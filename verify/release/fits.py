"""What an artifact fits on: the devices of the recipe, asked one by one, as rows for the manifest.

In: the artifact's files and the recipe's devices. Out: for each device the verdict, the largest
context and the fewest devices, by `quantize.fit`; a device that is not known is bad input before
anything is made. Where a model has no formula the verdict is "not modelled", never a guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantize.fit.fit import fit, parse_context
from quantize.fit.gpu import find_gpu
from verify.release.recipe import ReadRecipe


def check_devices(read: ReadRecipe) -> None:
    """InputError for a device or a context that cannot be asked about."""
    for device in read.recipe.fit.devices:
        find_gpu(device)
    if read.recipe.fit.context:
        parse_context(read.recipe.fit.context)


def fit_rows(read: ReadRecipe, artifact: Path) -> list[dict[str, Any]]:
    """One row a device."""
    rows = []
    for device in read.recipe.fit.devices:
        report = fit(str(artifact), gpu=device, context=read.recipe.fit.context)
        (answer,) = report.answers
        rows.append(
            {
                "device": device,
                "engine": answer.engine,
                "context": report.question.context,
                "verdict": answer.verdict.value,
                "breaks": answer.breaks,
                "largest_context": answer.largest_context,
                "fewest_devices": answer.fewest_gpus,
            }
        )
    return rows
