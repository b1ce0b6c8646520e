"""llama.cpp's own reserve as the judge: a header-only GGUF, loaded with `no_alloc`, on the CPU.

The file holds a real header and a hole where the weights would be, so a 405B costs 70 kB of disk
and a tenth of a second. The context is built, nothing is allocated, and the log states the sizes.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

_COMPUTE = re.compile(r"compute buffer size = +([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size = +([\d.]+) MiB")


@dataclass(frozen=True)
class Reserve:
    """What llama.cpp would allocate on the CPU, and the bytes of the weights it read about."""

    compute_mib: float
    output_mib: float
    weight_bytes: int


def reserve(
    path: Path,
    *,
    context: int,
    flash_attention: bool,
    sequences: int = 1,
    ubatch: int = 512,
    outputs: int = 0,
    type_k: int = 1,
    type_v: int = 1,
) -> Reserve:
    """Load `path` without its data, build a context and read what llama.cpp reserved."""
    import llama_cpp
    from llama_cpp._logger import llama_log_callback as usual

    log: list[bytes] = []

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
        log.append(text)

    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        parameters = llama_cpp.llama_model_default_params()
        parameters.no_alloc, parameters.load_mode = True, 0
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert model, b"".join(log).decode()
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, 2048, ubatch
        settings.n_seq_max, settings.kv_unified = sequences, False
        settings.flash_attn_type = int(flash_attention)
        settings.type_k, settings.type_v = type_k, type_v
        if outputs:
            settings.n_outputs_max = outputs
        made = llama_cpp.llama_init_from_model(model, settings)
        assert made, b"".join(log).decode()
        size = llama_cpp.llama_model_size(model)
        llama_cpp.llama_free(made)
        llama_cpp.llama_model_free(model)
    finally:
        llama_cpp.llama_log_set(usual, ctypes.c_void_p(0))
    text = b"".join(log).decode()
    compute, output = _COMPUTE.search(text), _OUTPUT.search(text)
    assert compute, text
    return Reserve(float(compute[1]), float(output[1]) if output else 0.0, size)
