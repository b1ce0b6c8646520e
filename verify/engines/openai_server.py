"""A model behind an OpenAI-compatible server (vLLM, llama-server) as an engine.

In: a `ServedModel`. Out: an `Engine` on token ids, and `chat`, which gives the server a
conversation and its tools and takes the tool calls *its own* parser found in the reply: what an
application sees, template, weights, sampler and parser together.

Ids go in through `/completions`, which takes a list of numbers for a prompt. How they come back is
each server's own extension (`openai_wire.py`). One that has none cannot be compared token for token
and is refused (`chat` still works); re-encoding its text would make a tokenizer's difference look
like a weight's.

The fact to know: "temperature 0" is not enough to be greedy. vLLM fills in what a request leaves
out from the model's generation_config.json, so a repetition penalty written there changes the
answers; every penalty is therefore sent with its neutral value. llama-server reuses the cache of
the prompt before, which moves the last bits; it is asked not to.

`batch` requests are in flight at once; how a server batches them is its own affair, and with it the
last bit of its logits. What it computes in, it does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from convert.conversation import Conversation, ToolCall
from convert.errors import ServerError, UnsupportedError
from verify.engines import (
    BY_STEPS,
    LOG_PROBABILITIES,
    SERVED_DEVICE,
    EngineInfo,
    Ids,
    OnProgress,
    ServedReply,
)
from verify.engines.generated_logprobs import SOFTWARE as LLAMA_SERVER
from verify.engines.generated_logprobs import score_by_steps
from verify.engines.log_probabilities import Passage, Scored
from verify.engines.openai_client import Client, JsonObject, ServedModel
from verify.engines.openai_wire import count_of, named_ids, read_call, wire_messages, wire_tool
from verify.engines.prompt_logprobs import SERVED_TOP, read_prompt_logprobs

TIMEOUT_S = 600.0
BATCH = 8
SCORING = {
    "vllm": frozenset({LOG_PROBABILITIES}),
    LLAMA_SERVER: frozenset({LOG_PROBABILITIES, BY_STEPS}),
}
"""What software can be asked about a text, by its name for itself."""
GREEDY: JsonObject = {
    "temperature": 0,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "repeat_penalty": 1,
    "cache_prompt": False,
}
"""vLLM's and llama-server's names; each ignores what only the other knows."""
ASK_FOR_IDS: JsonObject = {
    "return_token_ids": True,  # vLLM
    "return_tokens": True,  # llama-server, shown only if
    "verbose": True,
    "logprobs": 1,  # llama-server before it knew "verbose"
}

Question = TypeVar("Question")
Found = TypeVar("Found")


class OpenAIEngine:
    """One served model; up to `batch` requests at once, each given `timeout_s`."""

    def __init__(
        self, served: ServedModel, *, batch: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._served = served
        self._client = Client(served.url, timeout_s=timeout_s)
        self.info = EngineInfo(
            name=served.software,
            version=served.version,
            dtype="as served",
            activations="as served",
            kv_type="as served",
            batch=batch or BATCH,
            device=SERVED_DEVICE,
            threads=0,
            capabilities=SCORING.get(served.software, frozenset()),
        )

    def generate(
        self,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[int]]:
        """Greedy continuations, asked for in parallel."""

        def complete(prompt: Ids) -> list[int]:
            body = {
                "model": self._served.model,
                "prompt": list(prompt),
                "max_tokens": max_new_tokens,
                "stop_token_ids": sorted(stop_ids),
                **ASK_FOR_IDS,
                **GREEDY,
            }
            ids = self._reply_ids(self._client.post(f"{self._served.url}/completions", body))[
                :max_new_tokens
            ]
            ends = [place for place, token in enumerate(ids) if token in stop_ids]
            return ids[: ends[0] + 1] if ends else ids

        return self._in_parallel(complete, prompts, on_progress, self.info.batch)

    def score(
        self,
        passages: Sequence[Passage],
        *,
        top: int,
        always: Ids = (),
        on_progress: OnProgress | None = None,
    ) -> list[Scored]:
        """Log-probabilities along passages, as far as the server names them.

        `always` cannot be asked for; a candidate that is not named is NaN.
        """
        by_steps = self._served.software == LLAMA_SERVER

        def ask(passage: Passage) -> Scored:
            try:
                if by_steps:
                    return score_by_steps(self._complete, passage, top=top)
                return self._prompt_logprobs(passage, min(top, SERVED_TOP))
            except ValueError as error:
                raise UnsupportedError(f"{self._served.url}: {error}") from error

        return self._in_parallel(ask, passages, on_progress, 1 if by_steps else self.info.batch)

    def _prompt_logprobs(self, passage: Passage, top: int) -> Scored:
        """One passage, all at once, as vLLM can."""
        choice = self._complete(
            {"prompt": list(passage.ids), "max_tokens": 1, "prompt_logprobs": top}
        )
        return read_prompt_logprobs(choice.get("prompt_logprobs"), passage)

    def _complete(self, asked: JsonObject) -> JsonObject:
        """The first choice of a completion."""
        body = {"model": self._served.model, **GREEDY, **asked}
        return self._choice(self._client.post(f"{self._served.url}/completions", body))

    def chat(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int,
        on_progress: OnProgress | None = None,
    ) -> list[ServedReply]:
        """Replies to whole conversations, rendered and parsed by the server."""

        def converse(conversation: Conversation) -> ServedReply:
            body = {
                "model": self._served.model,
                "messages": list(wire_messages(conversation)),
                "max_tokens": max_new_tokens,
                **GREEDY,
            }
            if conversation.tools:
                body["tools"] = [wire_tool(tool) for tool in conversation.tools]
                body["tool_choice"] = "auto"
            if conversation.template_kwargs:
                body["chat_template_kwargs"] = dict(conversation.template_kwargs)
            return self._reply(self._client.post(f"{self._served.url}/chat/completions", body))

        return self._in_parallel(converse, conversations, on_progress, self.info.batch)

    def _in_parallel(
        self,
        ask: Callable[[Question], Found],
        questions: Sequence[Question],
        on_progress: OnProgress | None,
        at_once: int,
    ) -> list[Found]:
        """Answers in the order of the questions; the first error ends the rest."""
        executor = ThreadPoolExecutor(at_once)
        try:
            futures = [executor.submit(ask, question) for question in questions]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                if on_progress is not None:
                    on_progress(done, len(questions))
            return [future.result() for future in futures]
        finally:
            executor.shutdown(cancel_futures=True)

    def _reply_ids(self, answer: JsonObject) -> list[int]:
        """The ids of a completion, all of them."""
        ids = named_ids(self._choice(answer), answer)
        if ids is None:
            raise UnsupportedError(
                f"{self._served.url}: gives no token ids, without which replies cannot be"
                " compared; current versions of vLLM and llama-server do"
            )
        if not (isinstance(ids, list) and all(type(token) is int for token in ids)):
            raise ServerError(f"{self._served.url}: token ids that are no numbers: {ids!r:.80}")
        counted = count_of(answer, "completion_tokens")
        if counted not in (None, len(ids)):
            raise UnsupportedError(
                f"{self._served.url}: counts {counted} tokens in a reply and names {len(ids)}"
            )
        return ids

    def _reply(self, answer: JsonObject) -> ServedReply:
        """A chat completion's text and calls."""
        choice = self._choice(answer)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise ServerError(f"{self._served.url}: a chat completion without a message")
        calls: list[ToolCall] = []
        malformed: list[str] = []
        stated = message.get("tool_calls") or []
        for call in stated if isinstance(stated, list) else [stated]:
            try:
                calls.append(read_call(call))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                malformed.append(f"a tool call that cannot be read: {error}: {call!r:.200}")
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        return ServedReply(
            tuple(calls),
            tuple(malformed),
            str(text),
            count_of(answer, "prompt_tokens"),
            str(reasoning),
            choice.get("finish_reason") != "length",
        )

    def _choice(self, answer: JsonObject) -> JsonObject:
        choices = answer.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ServerError(f"{self._served.url}: an answer without choices: {answer!r:.200}")
        return choices[0]

    def close(self) -> None:
        """End the connections; the server goes on."""
        self._client.close()
