"""transformers: the float32 reference, and FP8 folders as a W8A8 or W8A16 server computes them.

In: a model folder (16- or 32-bit safetensors, or compressed-tensors FP8). Out: an `Engine`.

Whatever the weights are stored in, float32 is what is computed in: it holds 16-bit values exactly,
so the reference has the weights' own precision and adds none of its own error. An FP8 folder is
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
from pathlib import Path
from typing import Any

import torch
import transformers

from convert.errors import CheckpointError, UnsupportedError
from verify.engines import LOG_PROBABILITIES, EngineInfo, Ids, OnProgress, by_length
from verify.engines.activations import LEFT_ALONE, UNROUNDED, WEIGHTS_ONLY, rounding_of
from verify.engines.fp4_weights import decompress_fp4
from verify.engines.log_probabilities import ROWS_AT_ONCE, Passage, Reduction, Scored

PLAIN = "float32"
_FLOAT_NOISE = 1e-3


class TransformersEngine:
    """A folder's model in float32 on `device`."""

    def __init__(
        self, folder: Path, *, device: str = "cpu", batch: int = 16, activation_bits: int = 8
    ) -> None:
        self._model = _load(folder, device)
        quantized = _quantized_layers(self._model)
        rounded = activation_bits == 8
        for layer in quantized.values():
            setattr(layer, "quantization_enabled", rounded)  # noqa: B010  compressed-tensors' switch
        self.info = EngineInfo(
            name="transformers",
            version=transformers.__version__,
            dtype="float32",
            activations=_measure_activations(folder, quantized, rounded) if quantized else PLAIN,
            kv_type="float8_e4m3, stored scales" if _rounds_cache(self._model) else "float32",
            batch=batch,
            device=device,
            threads=torch.get_num_threads(),
            capabilities=frozenset({LOG_PROBABILITIES}),
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
        hidden = self._model.base_model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state  # [B, T, hidden]
        head = self._model.get_output_embeddings()
        for row, (passage, reduction) in enumerate(zip(passages, reductions, strict=True)):
            count = len(passage.ids) - passage.start
            for rows in hidden[row, hidden.shape[1] - count :].split(ROWS_AT_ONCE):
                reduction.add(head(rows).float().cpu().numpy())

    def close(self) -> None:
        """Drop the model."""
        del self._model
        gc.collect()


def _load(folder: Path, device: str) -> Any:
    log: Any = transformers.utils.logging
    auto: Any = transformers.AutoModelForCausalLM
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors' progress bars
            model, report = auto.from_pretrained(
                str(folder),
                dtype=torch.float32,
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


def _quantized_layers(model: Any) -> dict[str, torch.nn.Module]:
    """Linear layers that compressed-tensors took over, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)  # an attention whose KV cache is rounded is none
        and getattr(module, "quantization_scheme", None) is not None
    }


def _rounds_cache(model: Any) -> bool:
    """Whether keys and values are rounded to FP8, as a folder with a kv_cache_scheme asks for."""
    return any(hasattr(module, "k_scale") for module in model.modules())


@torch.inference_mode()
def _measure_activations(
    folder: Path, layers: dict[str, torch.nn.Module], wanted_rounded: bool
) -> str:
    """What enters the quantized layers, found by asking each for a product only one answer fits."""
    how = UNROUNDED
    for name, layer in layers.items():
        rounding, how = rounding_of(layer)
        weight: Any = layer.weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, weight.shape[1], generator=generator).to(weight.device)
        got = layer(x)
        rounded = torch.nn.functional.linear(rounding(x), weight)
        plain = torch.nn.functional.linear(x, weight)
        wanted = rounded if wanted_rounded else plain
        apart = (
            plain.abs().max() * _FLOAT_NOISE
            if how == WEIGHTS_ONLY
            else (plain - rounded).abs().max()
        )
        if (got - wanted).abs().max() > 0.1 * apart:
            done = "rounded as its scheme says" if wanted_rounded else "left alone"
            raise UnsupportedError(
                f"{folder}: {name} is not computed with activations {done} by transformers"
                f" {transformers.__version__} and compressed-tensors; a comparison would misstate"
                " the error (FP8_DYNAMIC, FP8 and NVFP4 are computed with rounded activations here;"
                " --activations 16 leaves them alone)"
            )
    return how if wanted_rounded else LEFT_ALONE.get(how, UNROUNDED)


def _pad_left(prompts: list[Ids], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of shape [B, T], the padding masked and on the left."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
