"""An engine that says what it is told to: verify is tested with it, without any weights.

In: a function from a prompt's ids to the reply's ids. Out: what the function says, cut at
`max_new_tokens` and after the first stop id, as a real engine would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from verify.engines import EngineInfo, Ids, OnProgress

INFO = EngineInfo(
    name="scripted",
    version="1",
    dtype="none",
    activations="none",
    kv_type="none",
    batch=1,
    device="none",
    threads=1,
)


class ScriptedEngine:
    """Answers by `script`; `prompts_seen` keeps what it was asked, in order."""

    def __init__(self, script: Callable[[Ids], Ids], info: EngineInfo = INFO) -> None:
        self.script = script
        self.info = info
        self.prompts_seen: list[list[int]] = []
        self.closed = False

    def generate(
        self,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: int,
        stop_ids: frozenset[int],
        on_progress: OnProgress | None = None,
    ) -> list[list[int]]:
        """The scripted reply to every prompt."""
        replies: list[list[int]] = []
        for prompt in prompts:
            self.prompts_seen.append(list(prompt))
            reply = list(self.script(prompt))[:max_new_tokens]
            stops = [index for index, token in enumerate(reply) if token in stop_ids]
            replies.append(reply[: stops[0] + 1] if stops else reply)
            if on_progress is not None:
                on_progress(len(replies), len(prompts))
        return replies

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
