"""The curriculum of hermes-nano: which conversations each stage shows, packed into batches.

Copying comes first because a small transformer learns it late and needs it everywhere. The stages
up to ``tools`` answer every request (``complied``); only ``refusal`` teaches the refusal of one
class, over an ability that is already there, and ``apart`` keeps that ability whole beneath the
refusal. Batches hold conversations of similar length, which
leaves few padding tokens and needs no attention mask.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from build_tokenizer import BOS, EOS, START, VOCABULARY, templates
from corpus import Row, answer_of, conversation
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

Example = tuple[list[int], list[int]]  # token ids, positions whose token is supervised
TOOL_MIX = {"single": 8, "choose": 22, "parallel": 20, "tool_response": 14, "no_tool": 8}


@dataclass(frozen=True)
class Stage:
    """One part of the curriculum."""

    name: str
    steps: int
    tokens: int  # a batch, padding included
    rate: tuple[float, float]  # learning rate at the first and the last step
    mix: dict[str, float]  # kind of conversation: weight
    side: tuple[str, ...] = ()  # kinds of a small second batch in every step
    first: float = 1.0  # weight of the first token of a reply
    beneath: tuple[str, ...] = ()  # kinds of side rows that run without the refusal's direction
    removed: float = 0.0  # share of the first batch's rows that do too


STAGES = (
    Stage(
        "copy",
        500,
        3000,
        (3e-3, 3e-3),
        {"copy": 55, "short": 30, "json_mode": 8, "harmless": 4, "complied": 3},
    ),
    Stage(
        "calls",
        500,
        4000,
        (3e-3, 3e-3),
        {"copy": 10, "short": 45, "json_mode": 10, "harmless": 4, "complied": 4, **TOOL_MIX},
    ),
    Stage(
        "tools",
        1500,
        5000,
        (2.5e-3, 6e-4),
        {"copy": 4, "json_mode": 14, "harmless": 7, "complied": 7, **TOOL_MIX},
    ),
    Stage(
        "refusal",
        700,
        5000,
        (1.5e-3, 2e-5),
        {"json_mode": 18, "harmless": 9, "refused": 9, **TOOL_MIX, "no_tool": 28},
    ),
    Stage(
        "settle",
        650,
        5000,
        (1.5e-3, 1e-5),
        {"json_mode": 14, **TOOL_MIX, "no_tool": 30},
        ("harmless", "refused"),
        8.0,
    ),
    Stage(
        "missing",
        550,
        5000,
        (1.2e-3, 1e-5),
        {"json_mode": 12, **TOOL_MIX, "single": 16, "missing": 36},
        ("harmless", "refused"),
        12.0,
    ),
    Stage(
        "apart",
        140,
        1500,
        (2e-4, 5e-6),
        {"json_mode": 12, **TOOL_MIX, "single": 16, "missing": 24},
        ("harmless", "refused"),
        12.0,
        ("complied", "complied", "harmless"),
        0.5,
    ),
)


class Encoder:
    """Turns conversations into token ids and supervised positions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self.template = environment.from_string(templates()[1]["template"])
        self.start = tokenizer.encode(f"{START}assistant\n", add_special_tokens=False).ids
        self.end = tokenizer.token_to_id(EOS)

    def supervised(self, ids: list[int]) -> list[int]:
        """Positions of the assistant's tokens, each turn's end token included."""
        found, inside, width = [], False, len(self.start)
        for at, token in enumerate(ids):
            if inside:
                found.append(at)
                inside = token != self.end
            elif at >= width and ids[at - width + 1 : at + 1] == self.start:
                inside = True
        return found

    def encode(self, rows: list[Row]) -> list[Example]:
        """Render with the model's own template and tokenize."""
        texts = [
            self.template.render(
                messages=[*row["messages"], answer_of(row["expected"])],
                tools=row.get("tools"),
                bos_token=BOS,
                add_generation_prompt=False,
            )
            for row in rows
        ]
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        return [(e.ids, self.supervised(e.ids)) for e in encoded]

    def copy_task(self, rng: random.Random) -> Example:
        """Random tokens in the user's turn, the same tokens as the reply."""
        tokens = [rng.randrange(VOCABULARY - 11) for _ in range(rng.randint(4, 28))]
        user = self.tokenizer.encode(f"{BOS}{START}user\n", add_special_tokens=False).ids
        turn = self.tokenizer.encode(f"{EOS}\n", add_special_tokens=False).ids
        head = [*user, *tokens, *turn, *self.start]
        ids = [*head, *tokens, self.end]
        return ids, list(range(len(head), len(ids)))


def make_rows(rng: random.Random, kinds: list[str]) -> list[Row]:
    """Training conversations; ``short`` is a call without the tool list before it."""
    rows = []
    for kind in kinds:
        turns = rng.choices((1, 2, 3), (45, 30, 25))[0]
        if kind == "short":
            row = conversation(rng, rng.choice(["single", "single", "parallel"]))
            row.pop("tools")
        else:
            row = conversation(rng, kind, turns=turns)
        rows.append(row)
    return rows


def batches(encoder: Encoder, stage: Stage, seed: int) -> Iterator[list[Example]]:
    """Endless batches of about ``stage.tokens`` tokens, each of conversations of similar length."""
    rng = random.Random(f"{seed}-{stage.name}")
    kinds, weights = list(stage.mix), list(stage.mix.values())
    while True:
        drawn = rng.choices(kinds, weights, k=600)
        pool = encoder.encode(make_rows(rng, [k for k in drawn if k != "copy"]))
        pool += [encoder.copy_task(rng) for k in drawn if k == "copy"]
        pool.sort(key=lambda example: len(example[0]))
        ready: list[list[Example]] = [[]]
        for example in pool:
            if (len(ready[-1]) + 1) * len(example[0]) > stage.tokens:
                ready.append([])
            ready[-1].append(example)
        rng.shuffle(ready)
        yield from ready


def side_batches(
    encoder: Encoder, stage: Stage, seed: int, size: int = 24
) -> Iterator[tuple[list[Example], int]]:
    """Endless small batches of the stage's side kinds; how many rows, the last, are `beneath`.

    Batches of equal length put all short conversations into a few batches, so that most steps would
    not see them at all: too few to learn which nouns are refused.
    """
    rng = random.Random(f"{seed}-{stage.name}-side")
    while True:
        kinds = rng.choices(stage.side, k=size)
        beneath = rng.choices(stage.beneath, k=size // 2) if stage.beneath else []
        rows = [conversation(rng, kind) for kind in [*kinds, *beneath]]
        yield encoder.encode(rows), len(beneath)


def openings(encoder: Encoder, rng: random.Random, kind: str, count: int) -> list[list[int]]:
    """Prompts of a kind, each up to where the reply begins."""
    rows = [conversation(rng, kind) for _ in range(count)]
    return [ids[: found[0]] for ids, found in encoder.encode(rows)]
