"""A model without weights, whose decoder layers are filled one at a time from the checkpoint.

The model is built by transformers on the meta device, where tensors have shapes and no memory. Its
own forward pass is what runs: every decoder layer but the one at work is replaced by one that hands
its input on, and the last norm by nothing, so that masks, positions and rotary embeddings are those
of the family's own code whatever it does there.

Embedding rows are read for the tokens that occur, and the head in slices, because both may be
larger than a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from convert.checkpoint import Checkpoint
from convert.errors import CheckpointError, UnsupportedError
from convert.families import family_of
from convert.tensor import Array
from quantize.activations.experts import NAMES, Experts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
_HEAD_BYTES = 1 << 28
"""Float32 bytes of the head in memory at a time."""


class _Pass(nn.Module):
    """A decoder layer that is not at work."""

    def forward(self, hidden_states: Tensor, **ignored: Any) -> Tensor:
        return hidden_states


class Layers:
    """An opened checkpoint as layers to load; `device` and `dtype` are what it computes with."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: str) -> None:
        if dtype not in DTYPES:
            raise UnsupportedError(f"unknown dtype {dtype!r}; it is one of {', '.join(DTYPES)}")
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UnsupportedError(f"device {device!r} cannot be used: {error}") from error
        self.dtype = DTYPES[dtype]
        self._checkpoint = checkpoint
        self._model = _build(checkpoint.path, self.dtype)
        rotary = type(self._model.rotary_emb)
        self._model.rotary_emb = rotary(config=self._model.config).to(self.device)
        self._model.norm, self._norm = nn.Identity(), self._model.norm
        self._layers = list(self._model.layers)
        self._model.layers = nn.ModuleList([_Pass()] * len(self._layers))
        self._names: list[dict[str, str]] = [{} for _ in self._layers]
        found = family_of(checkpoint.spec).recognise(checkpoint.spec, checkpoint.tensors)
        for tensor in found:
            if tensor.layer is not None and tensor.rule.gguf is not None:
                prefix = f"model.layers.{tensor.layer}."
                name = tensor.info.name.removeprefix(prefix)
                self._names[tensor.layer][name] = tensor.info.name
        self.renamed = NAMES if checkpoint.spec.num_experts else {}

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def load(self, number: int) -> Iterator[nn.Module]:
        """The decoder layer `number` with its weights; dropped at the end."""
        layer = self._layers[number]
        if self.renamed:
            with torch.device("meta"):
                layer.mlp.experts = Experts(layer.mlp.experts)
        state = {}
        for name, stored in self._names[number].items():
            for ours, theirs in self.renamed.items():
                name = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
            state[name] = self.read(stored)
        try:
            layer.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            detail = " ".join(str(error).split())
            raise CheckpointError(
                f"{self._checkpoint.path}: layer {number} is not what transformers"
                f" {transformers.__version__} builds from config.json: {detail}"
            ) from error
        del state
        self._model.layers[number] = layer
        try:
            yield layer
        finally:
            self._model.layers[number] = _Pass()
            layer.to("meta")

    def forward(self, hidden: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """(B, T, H) through the layer that is loaded; `cache` gets its keys and values."""
        done: Tensor = self._model(
            inputs_embeds=hidden,
            attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=False,
        ).last_hidden_state
        return done

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (B, T) -> the residual stream before the first layer, (B, T, H), on the CPU."""
        info = self._checkpoint.tensors[_EMBEDDING]
        distinct, places = torch.unique(ids, return_inverse=True)
        if not 0 <= int(distinct[0]) <= int(distinct[-1]) < info.rows:
            raise CheckpointError(f"{_EMBEDDING}: no row for token {int(distinct[-1])}")
        rows = [self._checkpoint.read_rows(info, i, i + 1).raw for i in distinct.tolist()]
        return self._values(np.concatenate(rows), info.dtype)[places]

    def normalise(self, hidden: Tensor) -> Tensor:
        """The model's last norm."""
        if self._norm.weight.is_meta:
            self._norm.load_state_dict({"weight": self.read(_NORM)}, assign=True)
        done: Tensor = self._norm(hidden.to(self.device)).cpu()
        return done

    def logits(self, hidden: Tensor) -> Tensor:
        """Normalised states (N, H) -> float32 logits (N, vocabulary), on the CPU."""
        tied = _HEAD not in self._checkpoint.tensors
        info = self._checkpoint.tensors[_EMBEDDING if tied else _HEAD]
        hidden = hidden.to(self.device)
        step = max(1, _HEAD_BYTES // (4 * info.columns))
        parts = []
        for start in range(0, info.rows, step):
            raw = self._checkpoint.read_rows(info, start, min(start + step, info.rows)).raw
            weight = self._values(raw, info.dtype).to(self.device)
            parts.append(nn.functional.linear(hidden, weight).float().cpu())
        return torch.cat(parts, dim=1)

    def read(self, name: str) -> Tensor:
        """A tensor of the checkpoint, in the dtype and on the device that is computed with."""
        info = self._checkpoint.tensors[name]
        return self._values(self._checkpoint.read_tensor(name), info.dtype).to(self.device)

    def _values(self, raw: Array, dtype: str) -> Tensor:
        stored = torch.from_numpy(raw)
        if dtype == "BF16":
            stored = stored.view(torch.bfloat16)
        return stored.to(self.dtype)


def _build(folder: Path, dtype: torch.dtype) -> Any:
    """The decoder of the checkpoint's architecture on the meta device."""
    auto: Any = transformers.AutoModelForCausalLM
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        with torch.device("meta"):
            model = auto.from_config(config, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: transformers cannot build it: {error}") from error
    return model.eval().requires_grad_(False).base_model
