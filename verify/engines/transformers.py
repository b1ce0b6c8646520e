"""transformers: the float32 reference, and FP8 folders as a W8A8 or W8A16 server computes them.

In: a model folder (16- or 32-bit safetensors, or compressed-tensors FP8). Out: an `Engine`.

Whatever the weights are stored in, float32 is what is computed in: it holds 16-bit values exactly,
so the reference has the weights' own precision and adds none of its own error. Another `dtype` is
for models whose float32 has no room: it is what the reference is then, and 16-bit folders are; the
KV cache has it too. Quantized folders are computed in float32 all the same. An FP8 folder is
decompressed to what its codes stand for. With 8 bits for activations, compressed-tensors rounds
what enters each quantized layer to e4m3, by one scale a token or by the stored `input_scale`, as
vLLM does on hardware that has FP8 (W8A8), and to FP4 for NVFP4 (`activations.py`); with 16 nothing
is rounded, as vLLM does it on older hardware (W8A16), with about half the error. What is done has
changed between versions of transformers, so it is measured when the engine is opened, and a folder
that is computed otherwise is refused.

Decoding is our own greedy loop, because `generate` obeys the folder's generation_config.json
(temperature, repetition penalty) and keeps finished rows in the batch to its end. Prompts are
padded on the left and masked. Batches are formed by length, so a prompt's batch, and with it the
last bit of its logits, depends on the whole list: the same list gives the same answers.

Shapes in comments: B rows in the batch, T tokens in the step.
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from convert.errors import CheckpointError, UnsupportedError
from convert.model_spec import read_json_object
from verify.engines import (
    LOG_PROBABILITIES,
    NARROWS,
    EngineInfo,
    Ids,
    OnProgress,
    StatedScale,
    by_length,
)
from verify.engines.activations import measure_activations, quantized_layers
from verify.engines.fp4_weights import decompress_fp4
from verify.engines.log_probabilities import ROWS_AT_ONCE, Passage, Reduction, Scored
from verify.engines.static_scales import ScaleWatch, round_cache
from verify.engines.torch_device import check_torch_device, memory_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PLAIN = "float32"
BATCH = 16
CACHE_BY_STORED, CACHE_BY_ONE = "float8_e4m3, stored scales", "float8_e4m3, scale 1.0"


class TransformersEngine:
    """A folder's model in `dtype` on `device`."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str = "cpu",
        dtype: str = PLAIN,
        batch: int | None = None,
        threads: int | None = None,
        activation_bits: int = 8,
        fp8_cache: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UnsupportedError(f"dtype {dtype!r}; known are {', '.join(DTYPES)}")
        check_torch_device(device)
        self._threads_before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        dtype = PLAIN if _is_quantized(folder) else dtype
        self._model, self._folder = _load(folder, device, DTYPES[dtype]), folder
        self._watch = ScaleWatch(self._model)
        quantized = quantized_layers(self._model)
        rounded = activation_bits == 8
        for layer in quantized.values():
            setattr(layer, "quantization_enabled", rounded)  # noqa: B010  compressed-tensors' switch
        self.info = EngineInfo(
            name="transformers",
            version=transformers.__version__,
            dtype=dtype,
            activations=measure_activations(folder, quantized, rounded) if quantized else dtype,
            kv_type=_round_cache(self._model, fp8_cache, dtype),
            batch=batch or BATCH,
            device=device,
            threads=torch.get_num_threads(),
            capabilities=frozenset({LOG_PROBABILITIES, *([NARROWS] if dtype == PLAIN else [])}),
        )

    def generate(
        self,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[int]]:
        """Greedy continuations, batched by length."""
        replies: list[list[int]] = [[] for _ in prompts]
        done = 0
        for batch in by_length(prompts, self.info.batch):
            with memory_for(len(prompts[batch[0]]) + max_new_tokens, len(batch)):
                found = self._generate_batch([prompts[i] for i in batch], max_new_tokens, stop_ids)
            for index, reply in zip(batch, found, strict=True):
                replies[index] = reply
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(prompts))
        return replies

    @torch.inference_mode()
    def _generate_batch(
        self, prompts: list[Ids], max_new_tokens: int, stop_ids: frozenset[int]
    ) -> list[list[int]]:
        ids, mask = _pad_left(prompts, self.info.device)  # [B, T]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = transformers.DynamicCache(config=self._model.config)
        replies: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))
        for _ in range(max_new_tokens):
            logits = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            following = logits[:, -1].argmax(-1)  # [B]
            for row, token in zip(rows, following.tolist(), strict=True):
                replies[row].append(token)
            going = [i for i, row in enumerate(rows) if replies[row][-1] not in stop_ids]
            if not going:
                break
            if len(going) < len(rows):
                kept = torch.tensor(going, device=ids.device)
                cache.batch_select_indices(kept)
                rows = [rows[i] for i in going]
                mask, positions, following = mask[kept], positions[kept], following[kept]
            ids = following[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        return replies

    def score(
        self,
        passages: Sequence[Passage],
        *,
        top: int,
        always: Ids = (),
        on_progress: OnProgress | None = None,
    ) -> list[Scored]:
        """Log-probabilities along passages, batched by length."""
        found: dict[int, Scored] = {}
        for batch in by_length([passage.ids for passage in passages], self.info.batch):
            reductions = [Reduction(passages[i], top=top, always=always) for i in batch]
            with memory_for(len(passages[batch[0]].ids), len(batch)):
                self._score_batch([passages[i] for i in batch], reductions)
            for index, reduction in zip(batch, reductions, strict=True):
                found[index] = reduction.finish()
            if on_progress is not None:
                on_progress(len(found), len(passages))
        return [found[index] for index in range(len(passages))]

    @torch.inference_mode()
    def _score_batch(self, passages: list[Passage], reductions: list[Reduction]) -> None:
        """The head is applied to scored tokens only, a few rows at a time: [B, T, V] never is."""
        ids, mask = _pad_left([passage.ids[:-1] for passage in passages], self.info.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._watch.mask = mask.bool()
        hidden = self._model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # [B, T, hidden]
        self._watch.mask = None
        head = self._model.get_output_embeddings()
        for row, (passage, reduction) in enumerate(zip(passages, reductions, strict=True)):
            count = len(passage.ids) - passage.start
            for rows in hidden[row, hidden.shape[1] - count :].split(ROWS_AT_ONCE):
                reduction.add(head(rows).float().cpu().numpy())

    def narrow(self) -> None:
        """Compute in the 16 bits of the checkpoint; in bfloat16 if it has more."""
        dtype = _stored_dtype(self._folder)
        for parameter in self._model.parameters():  # not the buffers: rope stays in float32
            parameter.data = parameter.data.to(dtype)
        self.info = replace(self.info, dtype=str(dtype).removeprefix("torch."))

    def stated_scales(self) -> tuple[StatedScale, ...]:
        """What scored text sent through the fixed scales since this was last asked."""
        return self._watch.take()

    def close(self) -> None:
        """Drop the model."""
        del self._model
        gc.collect()
        torch.set_num_threads(self._threads_before)


def _is_quantized(folder: Path) -> bool:
    return read_json_object(folder / "config.json").get("quantization_config") is not None


def _load(folder: Path, device: str, dtype: torch.dtype) -> Any:
    log: Any = transformers.utils.logging
    auto: Any = transformers.AutoModelForCausalLM
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors' progress bars
            model, report = auto.from_pretrained(
                str(folder),
                dtype=dtype,
                attn_implementation="sdpa",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            if report["missing_keys"]:
                raise ValueError(f"no weight for {sorted(report['missing_keys'])[0]}")
            decompress_fp4(model)
            model = model.to(device).eval()
            with torch.inference_mode():  # the first call is what decompresses an FP8 model
                model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: transformers cannot run it: {error}") from error
    return model


def _stored_dtype(folder: Path) -> torch.dtype:
    """float16 where config.json says so, else bfloat16."""
    config = read_json_object(folder / "config.json")
    stated = config.get("dtype", config.get("torch_dtype"))
    return torch.float16 if stated == "float16" else torch.bfloat16


def _round_cache(model: Any, wanted: bool, dtype: str) -> str:
    """How keys and values are kept: a folder with a kv_cache_scheme rounds them unasked."""
    if any(hasattr(module, "k_scale") for module in model.modules()):
        return CACHE_BY_STORED
    if not wanted:
        return dtype
    round_cache(model)
    return CACHE_BY_ONE


def _pad_left(prompts: list[Ids], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of shape [B, T], the padding masked and on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
