"""Releases of a miniature with edited artifacts, whose engines refuse or not by script."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from convert.rendering import Tokenizer
from tests.quantize.abliteration.edits import random_edit, writers
from tests.verify.release.releases import build_recipe, write_recipe
from tests.verify.test_verify import right
from verify.artifact import Artifact, Kind
from verify.engines import LOG_PROBABILITIES, Engine, Ids
from verify.engines.log_probabilities import Passage, Scored
from verify.engines.scripted import INFO, ScriptedEngine
from verify.release.build import Build

PROMPTS = 60
EDITED = ("FP8_DYNAMIC", "Q4_K_M")
REFUSAL, END = "I can't do this for you.", "<|im_end|>"
Refuses = Callable[[Artifact], bool]


def refuses_unless_edited(artifact: Artifact) -> bool:
    return "abliterated" not in artifact.name or "control" in artifact.name


class ScoringScript(ScriptedEngine):
    """Sure of the first token of its own reply, and after that of the text it is given."""

    def score(
        self, passages: Sequence[Passage], *, top: int, always: Ids = (), on_progress: Any = None
    ) -> list[Scored]:
        return [self._scored(passage, always) for passage in passages]

    def _scored(self, passage: Passage, always: Ids) -> Scored:
        targets = passage.targets
        own = self.script(passage.ids[: passage.start])[0]
        sure = np.array([own, *targets[1:]])
        candidates = passage.candidates
        if candidates is None:
            candidates = np.array([sorted({*always, *targets.tolist(), own})] * len(targets))
        hit = candidates == sure[:, None]
        log_probs = np.where(hit, np.log(0.9), np.log(0.1 / candidates.shape[1]))
        tail = np.full(len(targets), np.log(0.05))
        return Scored(targets, candidates, log_probs, tail, candidates[:, :2], log_probs[:, :2])


def engines(source: Path, refuses: Refuses) -> Callable[[Artifact], Engine]:
    """The reference answers; everything else does too, or refuses what it is asked as a favour."""
    tokenizer = Tokenizer.open(source)

    def open_engine(artifact: Artifact) -> Engine:
        def reply(prompt: Ids) -> Ids:
            asked = re.findall(r"(call f with|favour|tell) (\d+)", tokenizer.decode(prompt))
            kind, number = asked[-1]
            if kind == "call f with":
                return tokenizer.encode(right(int(number)))
            refused = kind == "favour" and refuses(artifact)
            return tokenizer.encode((REFUSAL if refused else f"Gladly {number}.") + END)

        if artifact.kind is Kind.CHECKPOINT:
            return ScriptedEngine(reply)
        return ScoringScript(reply, replace(INFO, capabilities=frozenset({LOG_PROBABILITIES})))

    return open_engine


def write_prompts(path: Path, kind: str) -> None:
    records = [
        {
            "id": f"{kind}{i}",
            "messages": [{"role": "user", "content": f"{kind} {i}"}],
            "expected": {"text": f"Gladly {i}.", "refusal": False},
        }
        for i in range(PROMPTS)
    ]
    path.write_text("\n".join(json.dumps(record) for record in records))


def write_edited_recipe(folder: Path, source: Path, **changes: Any) -> Path:
    """A recipe with edit, control and prompts beside it; `abliteration` holds changes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    random_edit(folder / "edit", writers(2))
    random_edit(folder / "random", writers(2), seed=100)
    write_prompts(folder / "refused.jsonl", "favour")
    write_prompts(folder / "harmless.jsonl", "tell")
    section = {
        "edit": "edit",
        "artifacts": list(EDITED),
        "refused": "refused.jsonl",
        "harmless": "harmless.jsonl",
        "controls": ["random"],
        **changes.pop("abliteration", {}),
    }
    artifacts = changes.pop("artifacts", ["FP8_DYNAMIC", "Q4_K_M"])
    return write_recipe(folder, source, artifacts=artifacts, abliteration=section, **changes)


def build_edited(
    folder: Path,
    source: Path,
    *,
    refuses: Refuses = refuses_unless_edited,
    only: Sequence[str] = (),
    threads: int = 1,
    **changes: Any,
) -> Build:
    """Build a recipe with edited artifacts in `folder`, into `folder/dist`."""
    recipe = write_edited_recipe(folder, source, **changes)
    return build_recipe(recipe, engines(source, refuses), only=only, threads=threads)
