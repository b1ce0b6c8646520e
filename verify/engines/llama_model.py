"""A GGUF as llama.cpp loads it: the model, or only its vocabulary, and why a load failed.

In: a GGUF file. Out: the C library's handle for an engine, or a `LlamaVocabulary`, which only
tokenizes (no weight is read).

llama.cpp writes its log from C, for the whole process: loading anything here silences it and keeps
the last errors, which is what a failed load is explained with. Weights are used in the file's own
layout and not repacked for one processor: repacking changes the last bits, and the AMX tiles it
chooses end in a fault on some virtual machines.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp

from convert.errors import CheckpointError, UnsupportedError

CPU = "cpu"
_LOG_LEVEL_ERROR = 3
_EVERY_LAYER = 1 << 20

_errors: deque[str] = deque(maxlen=4)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _data: ctypes.c_void_p) -> None:
    if level == _LOG_LEVEL_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


class LlamaVocabulary:
    """A GGUF's tokenizer as llama.cpp runs it."""

    def __init__(self, path: Path) -> None:
        self._model = load_model(path, vocab_only=True)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.bos_id: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.eos_id: int = llama_cpp.llama_vocab_eos(self._vocab)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Ids of `text`, special tokens in it recognised; BOS only with `add_special`."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, True)
        if count < 0:
            raise RuntimeError(f"llama_tokenize needs {-count} places for {len(data)} bytes")
        return list(ids[:count])

    def close(self) -> None:
        """Free the vocabulary."""
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
            self._model = None


def check_offload(device: str) -> None:
    """UnsupportedError if this build of llama.cpp cannot compute elsewhere than on the CPU."""
    if device != CPU and not llama_cpp.llama_supports_gpu_offload():
        raise UnsupportedError(
            f"device {device!r}: llama-cpp-python {llama_cpp.__version__} was built without a GPU;"
            " build it with one (CMAKE_ARGS=-DGGML_CUDA=on), or leave --device out"
        )


def load_model(path: Path, *, vocab_only: bool, device: str = CPU) -> Any:
    """The library's handle for a GGUF; CheckpointError with its reasons if it refuses the file.

    On another device than the CPU every layer is put there, on `cuda:1` all on that one.
    """
    check_offload(device)
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    _errors.clear()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0 if device == CPU else _EVERY_LAYER
    _, _, number = device.partition(":")
    if number.isdecimal():
        params.split_mode, params.main_gpu = llama_cpp.LLAMA_SPLIT_MODE_NONE, int(number)
    params.vocab_only = vocab_only
    params.check_tensors = not vocab_only
    params.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise CheckpointError(f"{path}: llama.cpp cannot load it: {last_errors()}")
    return model


def last_errors() -> str:
    """What llama.cpp last complained of."""
    return "; ".join(_errors) or "no reason given"
