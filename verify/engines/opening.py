"""The engine for an artifact: llama.cpp for GGUF files, transformers for folders, HTTP for servers.

In: an `Artifact` and how it will be run. Out: an `Engine`, loaded. The packages an engine needs are
imported here and not before; one that is absent is an UnsupportedError that says what to install.

An option that an artifact cannot have is not an error (a run has artifacts of several kinds): the
artifact keeps its own, and its `EngineInfo` says which. A device is: `check_device` asks before
anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from convert.errors import UnsupportedError
from convert.workers import let_openmp_sleep
from verify.artifact import Artifact, Kind
from verify.engines import Engine

CPU = "cpu"
FP8 = "fp8"
"""The KV cache type that folders can have; one whose scales are stored has it without asking."""
_LONG_NAMES = {"f16": "float16", "f32": "float32"}
"""The command line has llama.cpp's names for KV cache types."""


def open_engine(
    artifact: Artifact,
    *,
    kv_type: str = "f16",
    activation_bits: int = 8,
    dtype: str = "float32",
    device: str = CPU,
    batch: int | None = None,
    threads: int | None = None,
) -> Engine:
    """The engine an artifact is made for: llama.cpp for GGUF, transformers for folders, else HTTP.

    `kv_type` is the element type of the KV cache: FP8 is for folders, the others are llama.cpp's.
    Of an FP8 folder, `activation_bits` says whether what enters its matrix products is rounded too
    (8) or not (16). `dtype` is what folders that are not quantized are computed in. `device` is
    "cpu", "cuda" or "cuda:1"; `batch` the prompts at once (each engine has its own default),
    `threads` those of the CPU (default: every core).
    """
    let_openmp_sleep()
    with _said_what_to_install():
        if artifact.served is not None:
            from verify.engines.openai_server import OpenAIEngine

            return OpenAIEngine(artifact.served, batch=batch)
        if artifact.kind is Kind.GGUF:
            from verify.engines.llama_cpp import LlamaCppEngine

            cache_type = "float16" if kv_type == FP8 else _LONG_NAMES.get(kv_type, kv_type)
            return LlamaCppEngine(
                artifact.path, kv_type=cache_type, device=device, batch=batch, threads=threads
            )
        from verify.engines.transformers import TransformersEngine

        return TransformersEngine(
            artifact.path,
            activation_bits=activation_bits,
            fp8_cache=kv_type == FP8,
            dtype=dtype,
            device=device,
            batch=batch,
            threads=threads,
        )


def check_device(device: str, artifacts: Sequence[Artifact]) -> None:
    """UnsupportedError if one of the engines that these need cannot compute on `device`."""
    if device == CPU:
        return
    let_openmp_sleep()
    with _said_what_to_install():
        kinds = {artifact.kind for artifact in artifacts}
        if Kind.GGUF in kinds:
            from verify.engines.llama_model import check_offload

            check_offload(device)
        if kinds - {Kind.GGUF, Kind.SERVER}:
            from verify.engines.torch_device import check_torch_device

            check_torch_device(device)


@contextmanager
def _said_what_to_install() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(
            f"{error.name} is not installed; verify needs it: pip install 'hermes-quant[verify]'"
        ) from error
