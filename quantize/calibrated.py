"""llm-compressor, behind its one door: a checkpoint and chunks of token ids in, tensors out.

`run_oneshot` loads the checkpoint in its own dtype, runs `llmcompressor.oneshot` over the chunks in
their order with that tool's own defaults, and saves the compressed tensors. What else it saves
(configuration, recipe) is nobody's business; no tokenizer passes through here, so none can come out
with a truncation in it.

    W4A16_GPTQ   GPTQModifier(scheme="W4A16"): columns in the order of their activations
                 (`actorder` static), blocks of 128, dampening 0.01
    W4A16_AWQ    AWQModifier(duo_scaling="both"), then rounding to W4A16_ASYM. Scales move into
                 norms, v_proj and up_proj, so that 16-bit tensors change too
    NVFP4        weights and activations in FP4, a global scale for what enters each matrix

A GPU is used where torch sees one. On a CPU, llm-compressor 0.14's AWQ fails while it pins memory
for transfers to an accelerator that is not there: without one nothing is pinned.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from convert.errors import InputError
from convert.workers import Progress, let_openmp_sleep

Chunks = Sequence[Sequence[int]]
_PACKAGES = ("llmcompressor", "compressed-tensors", "torch", "transformers")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_IGNORE = ["lm_head"]
_SHARD_BYTES = 5_000_000_000


def installed(target: str) -> str:
    """The release of llm-compressor; InputError where it is not installed."""
    try:
        for package in _PACKAGES:
            version(package)
        return version("llmcompressor")
    except PackageNotFoundError as error:
        raise InputError(
            f"{target} needs {error.name}; install it with: pip install 'hermes-quant[calibrated]'"
        ) from error


def run_oneshot(
    checkpoint: Path,
    target: str,
    dtype: str,
    chunks: Chunks,
    out: Path,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute `target` of the checkpoint over `chunks`; leave its tensors in `out`.

    `dtype` is that of the checkpoint's tensors. Returns what decided the bits: versions, device.
    """
    let_openmp_sleep()
    with _quietly():
        import torch
        import transformers
        from datasets import Dataset
        from llmcompressor import entrypoints
        from llmcompressor.core import reset_session

        rows = [{"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in chunks]
        library: Any = transformers
        compressor: Any = entrypoints
        model = library.AutoModelForCausalLM.from_pretrained(
            str(checkpoint),
            dtype=getattr(torch, _DTYPES[dtype]),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        _report(model, 2 * len(rows), on_progress)
        try:
            with _nothing_pinned_in_vain():
                compressor.oneshot(
                    model=model,
                    dataset=Dataset.from_list(rows),
                    recipe=_modifiers(target),
                    num_calibration_samples=len(rows),
                    max_seq_length=max(map(len, chunks)),
                    shuffle_calibration_samples=False,  # the order of float sums is the chunks'
                )
            # transformers refuses to save settings that contradict each other; ours are a copy
            model.generation_config = library.GenerationConfig()
            model.save_pretrained(out, save_compressed=True, max_shard_size=_SHARD_BYTES)
        finally:
            reset_session()  # type: ignore[no-untyped-call]
            del model
            gc.collect()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"versions": {package: version(package) for package in _PACKAGES}, "device": device}


def _modifiers(target: str) -> list[Any]:
    """The recipe: every default is llm-compressor's."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    linear: dict[str, Any] = {"targets": "Linear", "ignore": list(_IGNORE)}
    recipes: dict[str, Callable[[], list[Any]]] = {
        "W4A16_GPTQ": lambda: [GPTQModifier(scheme="W4A16", **linear)],
        "W4A16_AWQ": lambda: [
            AWQModifier(duo_scaling="both"),
            QuantizationModifier(scheme="W4A16_ASYM", **linear),
        ],
        "NVFP4": lambda: [QuantizationModifier(scheme="NVFP4", **linear)],
    }
    return recipes[target]()


def _report(model: Any, passes: int, on_progress: Progress | None) -> None:
    """Tell progress as bytes of the model: every layer runs `passes` times."""
    if on_progress is None:
        return
    layers = list(model.model.layers)
    total = model.get_memory_footprint()
    done = 0

    def ran(*_: Any) -> None:
        nonlocal done
        done = min(done + 1, passes * len(layers))
        on_progress(total * done // (passes * len(layers)), total, "llm-compressor")

    for layer in layers:
        layer.register_forward_hook(ran)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Neither its log nor its progress bars; what it raises is raised."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        from loguru import logger

        for package in ("llmcompressor", "compressed_tensors"):
            logger.disable(package)
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            for package in ("llmcompressor", "compressed_tensors"):
                logger.enable(package)


@contextlib.contextmanager
def _nothing_pinned_in_vain() -> Iterator[None]:
    import torch
    from compressed_tensors.utils import patch_attr
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
        return
    with patch_attr(IntermediatesCache, "pin_memory", lambda *_, **__: None):
        yield
