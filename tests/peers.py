"""The tools whose bytes ours must equal, called as their own users call them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

_BY_NUMBER = """
2 Q4_0, 3 Q4_1, 7 Q8_0, 8 Q5_0, 9 Q5_1, 10 Q2_K, 11 Q3_K_S, 12 Q3_K_M, 13 Q3_K_L, 14 Q4_K_S,
15 Q4_K_M, 16 Q5_K_S, 17 Q5_K_M, 18 Q6_K, 19 IQ2_XXS, 20 IQ2_XS, 21 Q2_K_S, 22 IQ3_XS, 23 IQ3_XXS,
24 IQ1_S, 25 IQ4_NL, 26 IQ3_S, 27 IQ3_M, 28 IQ2_S, 29 IQ2_M, 30 IQ4_XS, 31 IQ1_M, 36 TQ1_0,
37 TQ2_0, 38 MXFP4_MOE
"""
FILE_TYPES = {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", _BY_NUMBER)}
"""llama.cpp's `enum llama_ftype`, written down again here on purpose."""
NEED_IMATRIX = {"Q2_K_S", "IQ3_XS", "IQ3_XXS", *(t for t in FILE_TYPES if t[:3] in ("IQ1", "IQ2"))}

_DRY_RUN_LINE = re.compile(r"\] (\S+)\s+- \[[^]]*\], type =\s*(\w+), size =[^\n(]*(?:\((\w+)\))?\n")


def llama_quantize(
    source: Path,
    out: Path,
    target: str,
    *,
    imatrix: Mapping[str, np.ndarray] | None = None,
    dry_run: bool = False,
) -> tuple[int, str]:
    """Run `llama_model_quantize`; its return code (0 is success) and everything it logged."""
    import llama_cpp
    from llama_cpp._logger import llama_log_callback as usual

    log: list[bytes] = []

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        log.append(text)

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype, parameters.dry_run = 1, FILE_TYPES[target], dry_run
    if imatrix:
        parameters.imatrix = _imatrix(imatrix)
    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), parameters)
    finally:
        llama_cpp.llama_log_set(usual, ctypes.c_void_p(0))
    return code, b"".join(log).decode()


def _imatrix(values: Mapping[str, np.ndarray]) -> ctypes.Array:
    import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()  # ended by a null name
    for entry, (name, array) in zip(entries, values.items(), strict=False):
        assert array.dtype == np.float32
        entry.name, entry.size = name.encode(), array.size
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def llama_types(source: Path, target: str) -> dict[str, str]:
    """The type llama.cpp would give each tensor, by its dry run."""
    code, log = llama_quantize(source, source.with_suffix(".none"), target, dry_run=True)
    assert code == 0, log
    lines = _DRY_RUN_LINE.findall(log)
    return {name: (new or old).upper() for name, old, new in lines}


def llama_fallbacks(log: str) -> int:
    """How many tensors llama.cpp says it stored in another type than the mixture's."""
    found = re.search(r"WARNING: (\d+) of \d+ tensor\(s\) required fallback", log)
    return int(found[1]) if found else 0


def model_free_ptq(
    source: Path,
    out: Path,
    target: str = "FP8_DYNAMIC",
    ignore: Sequence[str] = ("lm_head", "model.embed_tokens"),
) -> Path:
    """Quantize by llm-compressor's data-free entry point, on the CPU."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.entrypoints.model_free import model_free_ptq as run
    from loguru import logger

    logger.disable("llmcompressor")
    logger.disable("compressed_tensors")
    scheme: str | QuantizationScheme = target
    if target == "FP8_TENSOR":  # the one without a preset
        eight = {"num_bits": 8, "type": "float", "symmetric": True}
        scheme = QuantizationScheme(
            targets=["Linear"],
            weights=QuantizationArgs(strategy="tensor", dynamic=False, **eight),
            input_activations=QuantizationArgs(strategy="token", dynamic=True, **eight),
        )
    run(source, out, scheme=scheme, ignore=list(ignore), device="cpu")
    return out


class LlamaVocabulary:
    """A GGUF's vocabulary as llama.cpp loads it; a context manager."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, f"llama.cpp cannot load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)

    def __enter__(self) -> LlamaVocabulary:
        return self

    def __exit__(self, *error: object) -> None:
        self.api.llama_model_free(self.model)

    def __len__(self) -> int:
        return self.api.llama_vocab_n_tokens(self.vocab)

    def text(self, token: int) -> str:
        return self.api.llama_vocab_get_text(self.vocab, token).decode()

    def attribute(self, token: int) -> int:
        return self.api.llama_vocab_get_attr(self.vocab, token)

    def tokenize(self, text: str, *, add_special: bool = False, special: bool = True) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        out = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(self.vocab, raw, len(raw), out, room, add_special, special)
        assert count >= 0
        return list(out[:count])
