"""llama.cpp in this process: how a GGUF answers where it will be used.

In: a GGUF file. Out: an `Engine`.

The C API is used directly, through llama-cpp-python's bindings: token ids go in, the row of logits
after the last one comes out, its largest entry is the next token. The package's own `Llama` class
would tokenize, sample, cache prefixes and apply templates, and those are things verify measures.

`batch` prompts run side by side, each in a KV cache of its own, so that one decoding step reads the
weights once for all of them. A context is made for one `generate` call, as long as its longest
prompt and reply need, and the caches are cleared between groups. Matrix products are the ones of
the machine's own build (ggml-cpu): quantized weights times activations rounded to 8 bits, as a user
of the file gets them. The KV cache is float16 unless asked otherwise, llama.cpp's own default. A
build with a GPU computes there if `device` says so, and nothing of it if not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from convert.errors import CheckpointError, ContextError, UnsupportedError
from convert.workers import cores
from verify.engines import LOG_PROBABILITIES, EngineInfo, Ids, OnProgress, by_length
from verify.engines.llama_model import CPU, last_errors, load_model
from verify.engines.log_probabilities import ROWS_AT_ONCE, Passage, Reduction, Scored

KV_TYPES = {"float32": 0, "float16": 1, "q8_0": 8, "q4_0": 2}
"""Names of KV cache types, and their numbers in ggml's enumeration."""
BATCH = 8
_PREFILL_TOKENS = 512


class LlamaCppEngine:
    """A GGUF on `device`."""

    def __init__(
        self,
        path: Path,
        *,
        batch: int | None = None,
        kv_type: str = "float16",
        device: str = CPU,
        threads: int | None = None,
    ) -> None:
        if kv_type not in KV_TYPES:
            raise UnsupportedError(f"KV cache type {kv_type!r}; known are {', '.join(KV_TYPES)}")
        self._model = load_model(path, vocab_only=False, device=device)
        vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.info = EngineInfo(
            name="llama.cpp",
            version=f"llama-cpp-python {llama_cpp.__version__}",
            dtype="as stored",
            activations=f"as ggml rounds them on {device} for each weight type",
            kv_type=kv_type,
            batch=batch or BATCH,
            device=device,
            threads=threads or cores(),
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
        """Greedy continuations, in groups of near-equal length."""
        replies: list[list[int]] = [[] for _ in prompts]
        if not prompts:
            return replies
        self._check(prompts)
        longest = max(map(len, prompts)) + max_new_tokens
        rows = min(self.info.batch, len(prompts))
        context = _Context(self._model, self.info, rows, longest, outputs=rows)
        done = 0
        try:
            for group in by_length(prompts, self.info.batch):
                found = self._generate_group(
                    context, [prompts[i] for i in group], max_new_tokens, stop_ids
                )
                for index, reply in zip(group, found, strict=True):
                    replies[index] = reply
                done += len(group)
                if on_progress is not None:
                    on_progress(done, len(prompts))
        finally:
            context.close()
        return replies

    def _generate_group(
        self, context: _Context, prompts: list[Ids], max_new_tokens: int, stop_ids: frozenset[int]
    ) -> list[list[int]]:
        context.clear()
        replies = [[context.prefill(row, prompt)] for row, prompt in enumerate(prompts)]
        for _ in range(max_new_tokens - 1):
            going = [row for row, reply in enumerate(replies) if reply[-1] not in stop_ids]
            if not going:
                break
            steps = [(row, len(prompts[row]) + len(replies[row]) - 1) for row in going]
            for row, token in zip(
                going, context.step(steps, [replies[row][-1] for row in going]), strict=True
            ):
                replies[row].append(token)
        return replies if max_new_tokens else [[] for _ in prompts]

    def score(
        self,
        passages: Sequence[Passage],
        *,
        top: int,
        always: Ids = (),
        on_progress: OnProgress | None = None,
    ) -> list[Scored]:
        """Log-probabilities along passages, one after the other."""
        found: list[Scored] = []
        if not passages:
            return found
        self._check([passage.ids for passage in passages])
        longest = max(len(passage.ids) for passage in passages)
        context = _Context(self._model, self.info, 1, longest, outputs=ROWS_AT_ONCE)
        try:
            for passage in passages:
                context.clear()
                reduction = Reduction(passage, top=top, always=always)
                context.score(passage, reduction)
                found.append(reduction.finish())
                if on_progress is not None:
                    on_progress(len(found), len(passages))
        finally:
            context.close()
        return found

    def _check(self, prompts: Sequence[Ids]) -> None:
        for prompt in prompts:
            if not prompt or not all(0 <= token < self._vocab_size for token in prompt):
                raise CheckpointError(
                    f"a prompt of {len(prompt)} tokens is empty or holds ids outside the GGUF's "
                    f"vocabulary of {self._vocab_size}"
                )

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
            self._model = None


class _Context:
    """KV caches for `rows` sequences of up to `length` tokens, and the batch that feeds them.

    `outputs` is the number of rows of logits that one step may ask for.
    """

    def __init__(
        self, model: Any, info: EngineInfo, rows: int, length: int, *, outputs: int
    ) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = rows * (-(-length // 256) * 256)
        params.n_batch = max(_PREFILL_TOKENS, rows)
        params.n_ubatch = params.n_batch
        params.n_seq_max = rows
        params.n_outputs_max = outputs
        params.n_threads = params.n_threads_batch = info.threads
        params.type_k = params.type_v = KV_TYPES[info.kv_type]
        params.offload_kqv = params.op_offload = info.device != CPU
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise ContextError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens: {last_errors()}"
            )
        vocab = llama_cpp.llama_model_get_vocab(model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def clear(self) -> None:
        """Forget every sequence."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def prefill(self, row: int, prompt: Ids) -> int:
        """Read a whole prompt into sequence `row`; the token that follows it."""
        last = len(prompt) - 1
        for start in range(0, len(prompt), _PREFILL_TOKENS):
            stop = min(start + _PREFILL_TOKENS, len(prompt))
            places = [(row, position) for position in range(start, stop)]
            self._decode(places, prompt[start:stop], [p == last for _, p in places])
        return self._argmax(stop - start - 1)

    def score(self, passage: Passage, reduction: Reduction) -> None:
        """Read a passage into sequence 0, and hand on the logits before every scored token."""
        ids, first = passage.ids[:-1], passage.start - 1
        start = 0
        while start < len(ids):
            room = _PREFILL_TOKENS if start < first else ROWS_AT_ONCE
            stop = min(start + room, first if start < first else len(ids))
            scored = start >= first
            places = [(0, position) for position in range(start, stop)]
            self._decode(places, ids[start:stop], [scored] * len(places))
            if scored:
                rows = llama_cpp.llama_get_logits(self._context)
                shape = (len(places), self._vocab_size)
                reduction.add(np.ctypeslib.as_array(rows, shape=shape))
            start = stop

    def step(self, places: Sequence[tuple[int, int]], tokens: Ids) -> list[int]:
        """Put one token into each (sequence, position); the tokens that follow."""
        self._decode(places, tokens, [True] * len(tokens))
        return [self._argmax(index) for index in range(len(tokens))]

    def _decode(
        self, places: Sequence[tuple[int, int]], tokens: Ids, outputs: Iterable[bool]
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, ((row, position), token, output) in enumerate(
            zip(places, tokens, outputs, strict=True)
        ):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = output
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}: {last_errors()}")

    def _argmax(self, index: int) -> int:
        """The largest logit of the batch's token `index`, the lowest id among equals."""
        row = llama_cpp.llama_get_logits_ith(self._context, index)
        return int(np.ctypeslib.as_array(row, shape=(self._vocab_size,)).argmax())

    def close(self) -> None:
        """Free the caches."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
