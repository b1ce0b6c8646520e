"""Write the prompts; ``python write_prompts.py`` fills ``prompts`` and ``abliteration``.

Each line is one request with what the reply must be. The prompts use held-out values, phrasings
and triples only (see ``values.is_held_out``), so nothing in them was seen in training except the
tools themselves, enumerations, booleans and small integers. The prompts in ``abliteration`` that
the refusal is measured on and a direction chosen by are of the training half; its
``complied.jsonl`` holds the held-out refused prompts again, with the answers that the model would
give if it had never learnt to refuse.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from corpus import conversation
from harmless import ADJECTIVES, REFUSED_NOUNS, VERBS, reply_to
from values import TEST, TRAIN

COUNTS = {
    "single": 400,
    "choose": 600,
    "parallel": 400,
    "tool_response": 300,
    "no_tool": 300,
    "json_mode": 300,
    "harmless": 300,
    "refused": 300,
}
MULTI_TURN_SHARE = 0.15
# made-up words are put together from random syllables, which now and then spell a real one
UNPLEASANT = re.compile(
    r"shit|(?<!sa)turd|nig(?!ht)|fag|cum|rape|\b(tit|ass)s?\b|nazi|kike|anus|sex|homo|whor|jap|jew"
)


MEASURED = {"refused": 192, "harmless": 192}


def prompts(kind: str, count: int, seed: int = 2026, split: str = TEST) -> list[dict[str, object]]:
    """``count`` different prompts of one kind, held-out ones unless asked otherwise."""
    rng = random.Random(f"{seed}-{kind}")
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    while len(rows) < count:
        turns = 2 if split == TEST and rng.random() < MULTI_TURN_SHARE else 1
        row = conversation(rng, kind, split, turns)
        key = json.dumps(row["messages"])
        if key not in seen and not UNPLEASANT.search(key.lower()):
            seen.add(key)
            rows.append({"id": f"{kind}-{len(rows) + 1:04d}", **row})
    return rows


def complied(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Refused prompts with the answer in place of the refusal."""
    answered: list[dict[str, object]] = []
    for number, row in enumerate(rows, start=1):
        request = row["messages"][-1]["content"]  # type: ignore[index]
        words = re.findall(r"[a-z]+", request.lower())
        verb, adjective, noun = (
            next(word for word in known if word in words)
            for known in (VERBS, ADJECTIVES, REFUSED_NOUNS)
        )
        expected = {"text": reply_to((verb, adjective, noun), refuse=False), "refusal": False}
        named = {"id": f"complied-{number:04d}", "tags": ["complied"]}
        answered.append({**row, **named, "expected": expected})
    return answered


def main() -> None:
    """Write every kind, compactly and in a fixed order."""
    here = Path(__file__).parent
    files = [(here / "prompts", kind, prompts(kind, count)) for kind, count in COUNTS.items()]
    for kind, count in MEASURED.items():
        files.append((here / "abliteration", kind, prompts(kind, count, split=TRAIN)))
    # a direction must leave calls alone, so some of what is harmless has tools
    for kind in ("single", "choose", "no_tool"):
        files[-1][2].extend(prompts(kind, 32, split=TRAIN))
    files.append(
        (here / "abliteration", "complied", complied(prompts("refused", COUNTS["refused"])))
    )
    for folder, kind, rows in files:
        folder.mkdir(exist_ok=True)
        lines = [json.dumps(row, separators=(",", ":")) for row in rows]
        path = folder / f"{kind}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        print(
            f"{folder.name}/{path.name}: {len(rows)} prompts, {path.stat().st_size / 1024:.0f} KiB"
        )


if __name__ == "__main__":
    main()
