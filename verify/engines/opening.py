"""The engine for an artifact: llama.cpp for GGUF files, transformers for folders, HTTP for servers.

In: an `Artifact` and how it will be run. Out: an `Engine`, loaded. The packages an engine needs are
imported here and not before; one that is absent is an UnsupportedError that says what to install.
"""

from __future__ import annotations

from convert.errors import UnsupportedError
from convert.workers import let_openmp_sleep
from verify.artifact import Artifact, Kind
from verify.engines import Engine

FP8 = "fp8"
"""The KV cache type that folders can have; one whose scales are stored has it without asking."""


def open_engine(
    artifact: Artifact, *, kv_type: str = "float16", activation_bits: int = 8
) -> Engine:
    """The engine an artifact is made for: llama.cpp for GGUF, transformers for folders, else HTTP.

    `kv_type` is the element type of the KV cache: FP8 is for folders, the others are llama.cpp's;
    an artifact that cannot have it keeps its own, and its `EngineInfo` says which. Of an FP8
    folder, `activation_bits` says whether what enters its matrix products is rounded too (8) or
    not (16).
    """
    let_openmp_sleep()
    try:
        if artifact.served is not None:
            from verify.engines.openai_server import OpenAIEngine

            return OpenAIEngine(artifact.served)
        if artifact.kind is Kind.GGUF:
            from verify.engines.llama_cpp import LlamaCppEngine

            return LlamaCppEngine(artifact.path, kv_type="float16" if kv_type == FP8 else kv_type)
        from verify.engines.transformers import TransformersEngine

        return TransformersEngine(
            artifact.path, activation_bits=activation_bits, fp8_cache=kv_type == FP8
        )
    except ImportError as error:
        raise UnsupportedError(
            f"{error.name} is not installed; verify needs it: pip install 'hermes-quant[verify]'"
        ) from error
