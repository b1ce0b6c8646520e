"""The engine for an artifact: llama.cpp for GGUF files, transformers for folders, HTTP for servers.

In: an `Artifact` and how it will be run. Out: an `Engine`, loaded. The packages an engine needs are
imported here and not before; one that is absent is an UnsupportedError that says what to install.
"""

from __future__ import annotations

import os

from convert.errors import UnsupportedError
from verify.artifact import Artifact, Kind
from verify.engines import Engine


def open_engine(
    artifact: Artifact, *, kv_type: str = "float16", activation_bits: int = 8
) -> Engine:
    """The engine an artifact is made for: llama.cpp for GGUF, transformers for folders, else HTTP.

    `kv_type` is the element type of llama.cpp's KV cache; the others have their own. Of an FP8
    folder, `activation_bits` says whether what enters its matrix products is rounded too (8) or not
    (16).
    Both compute with OpenMP, whose threads spin while they wait for each other unless told not to
    before they are loaded: on a machine with other work, fifty times slower for a small model.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if artifact.served is not None:
            from verify.engines.openai_server import OpenAIEngine

            return OpenAIEngine(artifact.served)
        if artifact.kind is Kind.GGUF:
            from verify.engines.llama_cpp import LlamaCppEngine

            return LlamaCppEngine(artifact.path, kv_type=kv_type)
        from verify.engines.transformers import TransformersEngine

        return TransformersEngine(artifact.path, activation_bits=activation_bits)
    except ImportError as error:
        raise UnsupportedError(
            f"{error.name} is not installed; verify needs it: pip install 'hermes-quant[verify]'"
        ) from error
