"""Write the held-out prompts; ``python write_prompts.py`` fills ``prompts``, a file a kind.

Each line is one request with what the reply must be. The prompts use held-out values, phrasings
and triples only (see ``values.is_held_out``), so nothing in them was seen in training except the
tools themselves, enumerations, booleans and small integers.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from corpus import conversation
from values import TEST

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


def prompts(kind: str, count: int, seed: int = 2026) -> list[dict[str, object]]:
    """``count`` different held-out prompts of one kind."""
    rng = random.Random(f"{seed}-{kind}")
    rows: list[dict[str, object]] = []
    seen: set[str] = set()
    while len(rows) < count:
        turns = 2 if rng.random() < MULTI_TURN_SHARE else 1
        row = conversation(rng, kind, TEST, turns)
        key = json.dumps(row["messages"])
        if key not in seen and not UNPLEASANT.search(key.lower()):
            seen.add(key)
            rows.append({"id": f"{kind}-{len(rows) + 1:04d}", **row})
    return rows


def main() -> None:
    """Write every kind, compactly and in a fixed order."""
    folder = Path(__file__).parent / "prompts"
    folder.mkdir(exist_ok=True)
    for kind, count in COUNTS.items():
        lines = [json.dumps(row, separators=(",", ":")) for row in prompts(kind, count)]
        path = folder / f"{kind}.jsonl"
        path.write_text("\n".join(lines) + "\n")
        print(f"{path.name}: {count} prompts, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
