"""What a synthetic tool is: its schema, how a user asks for it, what it gives back.

A tool is a small record. ``params`` names each argument and the kind of its value (see
``values``), ``asks`` are imperative phrases with one slot per argument, ``result`` describes what
the tool returns and ``answer`` is the sentence the assistant says after reading that. The tools
themselves are in ``tools.py``.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from values import draw, schema_of


@dataclass(frozen=True, eq=False)
class Tool:
    """One callable function and the language around it."""

    name: str
    description: str
    params: dict[str, str]
    asks: tuple[str, ...]
    result: dict[str, str]
    answer: str
    spoken: dict[str, tuple[str, str]] = field(default_factory=dict)  # how a boolean is said

    def definition(self) -> dict[str, Any]:
        """The OpenAI-style definition that goes into the prompt."""
        parameters = {
            "type": "object",
            "properties": {name: schema_of(kind) for name, kind in self.params.items()},
            "required": list(self.params),
        }
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": parameters,
        }
        return {"type": "function", "function": function}

    def arguments(self, rng: random.Random, split: str) -> dict[str, Any]:
        """Draw one set of arguments."""
        return {name: draw(rng, kind, split) for name, kind in self.params.items()}

    def say(self, rng: random.Random, ask: str, arguments: dict[str, Any]) -> str:
        """Fill an ask with the arguments as a user would write them."""
        words = {k: self._spoken(rng, k, v) for k, v in arguments.items()}
        return ask.format(**words)

    def _spoken(self, rng: random.Random, name: str, value: Any) -> str:
        if name in self.spoken:
            return self.spoken[name][0 if value else 1]
        kind = self.params[name]
        if kind == "text":
            return json.dumps(value)
        if isinstance(value, list):
            words = [json.dumps(item) for item in value]
            return ", ".join(words[:-1]) + " and " + words[-1]
        if isinstance(value, dict):
            return " and ".join(f"{key} {item}" for key, item in value.items())
        if kind in ("title", "file", "word") and rng.random() < 0.4:
            return json.dumps(value)
        return str(value)
