"""What runs a model, as verify sees it: token ids in, token ids out, and a statement of how.

An engine is handed ids, never text: whether two tokenizers agree is a check of its own, and must
not leak into the comparison of weights. Decoding is greedy, so that one prompt has one answer.

`EngineInfo` travels with every number an engine produced. The same file gives other answers in
another dtype, with another KV cache, or in batches of another size (the order of float additions
changes), so these are evidence and not configuration. `activations` tells W8A8 from W8A16: the same
FP8 file is both, depending on whether what enters its matrix products is rounded to 8 bits too.

Most engines can also score a text they are given, token by token: `log_probabilities.py`.

One engine is one file here, and the packages they need are imported when one is opened:
`transformers.py` (the reference, FP8 folders), `llama_cpp.py` (GGUF), `openai_server.py` (a server
by its address), `scripted.py` (tests). `kept.py` keeps what any of them but a server answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from convert.conversation import Conversation, ToolCall
from verify.engines.log_probabilities import Passage, Scored

LOG_PROBABILITIES = "log_probabilities"
"""The capability of an engine that is a `ScoringEngine` and can also do what it takes."""
BY_STEPS = "by_steps"
"""Beside LOG_PROBABILITIES: a token scored costs as much as one generated, so ask for few."""
NARROWS = "narrows"
"""The capability of an engine that is a `NarrowingEngine`, and computes in float32 as yet."""
SERVED_DEVICE = "server"
"""Where a server computes: it does not say."""
Ids = Sequence[int]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """How answers were computed. `batch` is prompts at once; `kv_type` the cache's element type.

    `activations` is the precision of what enters the quantized matrix products; `threads` is 0 if
    it is not known. `capabilities` names what can be asked beyond generating.
    """

    name: str
    version: str
    dtype: str
    activations: str
    kv_type: str
    batch: int
    device: str
    threads: int
    capabilities: frozenset[str] = frozenset()


class Engine(Protocol):
    """A model that is loaded and can answer."""

    @property
    def info(self) -> EngineInfo:
        """How this engine computes."""
        ...

    def generate(
        self,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[int]]:
        """The greedy continuation of every prompt, in the order given.

        A continuation holds at most `max_new_tokens` ids and ends with the first of `stop_ids` if
        one was produced: one that does not end so was cut off. `on_progress` is called with the
        number of prompts done and the number of all.
        """
        ...

    def close(self) -> None:
        """Give the memory back; the engine cannot be used after that."""
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that can also say what it thinks of tokens it is given (LOG_PROBABILITIES)."""

    def score(
        self,
        passages: Sequence[Passage],
        *,
        top: int,
        always: Ids = (),
        on_progress: OnProgress | None = None,
    ) -> list[Scored]:
        """Log-probabilities along every passage, in the order given.

        A passage without candidates gets the `top` likeliest of each row, `always` among them.
        """
        ...


@runtime_checkable
class NarrowingEngine(ScoringEngine, Protocol):
    """An engine that can go over to computing in 16 bits, as its checkpoint is stored."""

    def narrow(self) -> None:
        """Compute in 16 bits from now on; there is no way back."""
        ...


@dataclass(frozen=True, slots=True)
class StatedScale:
    """A scale that a folder fixes for what is rounded to FP8 as it runs.

    `limit` is the largest magnitude it holds, 448 times the scale; `seen` the largest that came.
    """

    name: str
    limit: float
    seen: float


@runtime_checkable
class WatchingEngine(ScoringEngine, Protocol):
    """An engine that keeps what scored text sent through the scales its folder fixes."""

    def stated_scales(self) -> tuple[StatedScale, ...]:
        """Every such scale, and the largest magnitude that came since this was last asked."""
        ...


@dataclass(frozen=True, slots=True)
class ServedReply:
    """A reply as a server took it apart; `prompt_tokens` is the length of what it rendered.

    `reasoning` is what it split off; `finished` is false where it says that the reply was cut off.
    """

    calls: tuple[ToolCall, ...]
    malformed: tuple[str, ...]
    text: str
    prompt_tokens: int | None
    reasoning: str = ""
    finished: bool = True


@runtime_checkable
class ChatEngine(Engine, Protocol):
    """An engine that can also be given conversations, with a template and a parser of its own."""

    def chat(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        on_progress: OnProgress | None = None,
    ) -> list[ServedReply]:
        """The reply to every conversation, in the order given."""
        ...


def by_length(prompts: Sequence[Ids], batch: int) -> list[list[int]]:
    """Indices of `prompts` in batches of near-equal length, longest first, ties in given order.

    Longest first, so that a prompt too long for the memory fails at once and not at the end.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    return [order[start : start + batch] for start in range(0, len(order), batch)]
