"""Folders that llm-compressor's `oneshot` computes (GPTQ, AWQ, NVFP4): planned and filled.

In: an opened model and the text of a calibration: a folder that `calibrate` made (it keeps its
tokens), or a file of conversations. Out: a planned folder like every other for vLLM, its shards
named as the source's, and `fill`, which has the tensors computed. Sizes come from headers and do
not depend on the text, but the fingerprint does, and on the release of llm-compressor.

The fact a reader lacks: `oneshot` holds the whole model in memory and reads it from the checkpoint
on disk. So an edit that is made on the way does not reach it and is refused here. So is a mixture
of experts, whose experts transformers stacks under other names than the checkpoint has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.edited import EditedCheckpoint
from convert.errors import InputError, UnsupportedError
from convert.model import Model
from convert.output_tensor import OutputTensor
from convert.plan import PlannedArtifact
from convert.workers import Progress
from quantize import calibrated
from quantize.by_oneshot import ByOneshot
from quantize.calibration import Calibration, check_model
from quantize.calibration_text import CalibrationText, read_calibration_text
from quantize.compressed_tensors import plan_compressed
from quantize.static_scales import StaticScales


class OneshotFolders:
    """Plans and fills the folders of one run; the text is rendered once for all of them."""

    def __init__(
        self, calibration: Calibration | None, data: Path | None = None, *, kv_cache: bool = False
    ) -> None:
        """From a calibration's own text, or without one from the conversations in `data`."""
        self._calibration, self._data = calibration, data
        self._scales = StaticScales(calibration, kv_cache=kv_cache)
        self._text: CalibrationText | None = None

    def plan(self, model: Model, target: str) -> PlannedArtifact:
        """The folder `<name>-<target>`, every size of it."""
        refuse(model, target)
        if self._scales.kv_cache:
            _refuse_moved_values(model, target)
        version = calibrated.installed(target)
        text = self._read(model, target)
        planned = plan_compressed(
            f"{model.name}-{target}",
            target,
            model.checkpoint,
            model.tensors,
            f"llmcompressor {version}",
            self._scales,
        )
        files = []
        for file in planned.files:
            placed = (replace(p, tensor=_left_to_it(p.tensor, text)) for p in file.tensors)
            files.append(replace(file, tensors=tuple(placed)))
        size = sum(tensor.info.size_bytes for tensor in model.tensors)
        note = (
            f"llm-compressor {version} computes it, with the whole model ({size:,} bytes) in memory"
        )
        return replace(planned, files=tuple(files), notes=(note,))

    def fill(
        self, model: Model, planned: PlannedArtifact, folder: Path, on_progress: Progress | None
    ) -> Mapping[str, Any]:
        """Have the tensors computed into `folder`; what the sidecar is to say of it."""
        text = self._read(model, planned.target)
        done = calibrated.run_oneshot(
            model.checkpoint.path,
            planned.target,
            _dtype(model, planned.target),
            text.chunks,
            folder,
            on_progress,
        )
        said = {
            "name": text.name,
            "sha256": text.sha256,
            "conversations": text.conversations,
            "chunks": len(text.chunks),
            "chunk_tokens": text.chunk_tokens,
        }
        return {"oneshot": {**done, "text": said}}

    def _read(self, model: Model, target: str) -> CalibrationText:
        if self._text is None:
            if self._calibration is not None:
                check_model(self._calibration, model.checkpoint)
                self._text = self._calibration.text()
            elif self._data is not None:
                self._text = read_calibration_text(model.checkpoint.path, self._data)
            else:
                raise InputError(
                    f"{target} is computed over conversations: pass --calibration with a file of"
                    " them (FILE.jsonl), or with a folder that `hermes-quant calibrate` made"
                )
        return self._text


def refuse(model: Model, target: str) -> None:
    """Raise UnsupportedError for a model that the target cannot be made of."""
    if isinstance(model.checkpoint, EditedCheckpoint):
        raise UnsupportedError(
            f"{target} reads the checkpoint itself, which --abliterate does not change: make"
            " SAFETENSORS with --abliterate first, then this from that folder"
        )
    if model.checkpoint.spec.num_experts:
        raise UnsupportedError(
            f"{model.name}: a mixture of experts; {target} is made of dense models only (W4A16,"
            " NVFP4A16 and FP8_DYNAMIC take mixtures)"
        )
    _dtype(model, target)


def _refuse_moved_values(model: Model, target: str) -> None:
    """Raise UnsupportedError where values leave v_proj in other sizes than were calibrated.

    llm-compressor's AWQ leaves v_proj alone where o_proj has more columns than it has rows.
    """
    spec = model.checkpoint.spec
    if target == "W4A16_AWQ" and spec.num_key_value_heads == spec.num_attention_heads:
        raise UnsupportedError(
            f"{model.name}: every head has values of its own, and {target} moves scales into"
            " v_proj, so that the calibrated scale of the cache would be wrong; leave out"
            " --kv-cache-fp8, or make W4A16_GPTQ with it"
        )


def _dtype(model: Model, target: str) -> str:
    found = sorted({t.info.dtype for t in model.tensors if t.rule.gguf is not None})
    if len(found) > 1:
        raise UnsupportedError(
            f"{model.name}: tensors in {' and '.join(found)}; {target} takes a checkpoint that is"
            " of one dtype, because transformers loads it in one"
        )
    return found[0]


def _left_to_it(tensor: OutputTensor, text: CalibrationText) -> OutputTensor:
    """A planned tensor that nothing is read for by us; matrices remember the text."""
    if tensor.computed:
        return tensor
    scheme = tensor.scheme
    if isinstance(scheme, ByOneshot):
        scheme = replace(scheme, text=text.ids_sha256)
    return replace(tensor, scheme=scheme, sources=(), group="")
