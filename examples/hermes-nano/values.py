"""Values that fill the synthetic requests, and the rule that keeps held-out values unseen.

A tool call is mostly *copying*: the city, the code, the amount come from the user's text. To
measure copying and not memory, every string value is assigned to one side by a checksum of its
text: about one in eight belongs to the held-out prompts, the rest to training. The two sides share
an alphabet and a way of making words, never a value. Enumerations, booleans and small integers
have too few values to split, so they occur on both sides.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRAIN, TEST = "train", "test"
HELD_OUT_SHARE = 8


def _read_words() -> dict[str, list[str]]:
    """The lists of words.txt by title."""
    text = (Path(__file__).parent / "words.txt").read_text()
    parts = re.findall(r"^\[(.+)\]\n([^\[]*)", text, flags=re.MULTILINE)
    return {title: words.split() for title, words in parts}


WORDS = _read_words()
ONSETS = WORDS["onsets"]
VOWELS = WORDS["vowels"]
CODAS = ["", "", "", "l", "n", "r", "s", "t", "m", "nd", "rk", "x"]
TITLE_WORDS = WORDS["title words"]
PLAIN_WORDS = WORDS["plain words"]


def is_held_out(text: str) -> bool:
    """True when this value may occur only in held-out prompts."""
    return zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0


def split_value(rng: random.Random, split: str, make: Callable[[random.Random], Any]) -> Any:
    """Draw values until one falls on the wanted side of the split."""
    while True:
        value = make(rng)
        if is_held_out(str(value)) == (split == TEST):
            return value


def _word(rng: random.Random, low: int = 2, high: int = 3) -> str:
    count = rng.randint(low, high)
    return "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(count)
    )


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(1, 3)))
    digits = "".join(rng.choices("0123456789", k=rng.randint(2, 5)))
    return rng.choice([f"{letters}-{digits}", f"{letters}{digits}", f"{digits}-{letters}"])


def _title(rng: random.Random) -> str:
    words = rng.sample(TITLE_WORDS, rng.randint(1, 3))
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] = _word(rng).capitalize()
    return " ".join(words)


def _person(rng: random.Random) -> str:
    first = _word(rng, 1, 2).capitalize()
    return first if rng.random() < 0.4 else f"{first} {_word(rng, 1, 2).capitalize()}"


def _file(rng: random.Random) -> str:
    stem = _word(rng, 1, 2) + rng.choice(["", f"_{rng.randint(1, 99)}"])
    return f"{stem}.{rng.choice(['txt', 'csv', 'pdf', 'log', 'md'])}"


STRINGS: dict[str, Callable[[random.Random], str]] = {
    "person": _person,
    "place": lambda rng: _word(rng).capitalize(),
    "code": _code,
    "title": _title,
    "text": lambda rng: " ".join(rng.sample(PLAIN_WORDS, rng.randint(2, 4))),
    "file": _file,
    "word": lambda rng: _word(rng, 1, 2),
}


def _decimal(rng: random.Random, low: float, high: float) -> float:
    value = round(rng.uniform(low, high), rng.choice([1, 1, 2]))
    return value if value % 1 else value + 0.5


def draw(rng: random.Random, kind: str, split: str) -> Any:
    """Draw one value of a kind: ``place``, ``int:1:12``, ``num:0:99``, ``enum:a,b``, ``bool``...

    ``list:KIND`` gives two to four values, ``point`` an object with the two numbers x and y.
    """
    name, _, rest = kind.partition(":")
    if name in STRINGS:
        return split_value(rng, split, STRINGS[name])
    if name == "int":
        low, high = (int(part) for part in rest.split(":"))
        if high - low < 500:
            return rng.randint(low, high)
        return split_value(rng, split, lambda r: r.randint(low, high))
    if name == "num":
        low_n, high_n = (float(part) for part in rest.split(":"))
        if rng.random() < 0.5:  # short and long amounts equally often
            high_n = min(high_n, low_n + 100)
        return split_value(rng, split, lambda r: _decimal(r, low_n, high_n))
    if name == "enum":
        return rng.choice(rest.split(","))
    if name == "bool":
        return rng.random() < 0.5
    if name == "list":
        return [draw(rng, rest, split) for _ in range(rng.randint(2, 4))]
    if name == "point":
        return {"x": draw(rng, "int:-99:99", split), "y": draw(rng, "int:-99:99", split)}
    raise ValueError(f"unknown kind of value: {kind}")


def schema_of(kind: str) -> dict[str, Any]:
    """JSON Schema of a kind of value."""
    name, _, rest = kind.partition(":")
    if name == "enum":
        return {"type": "string", "enum": rest.split(",")}
    if name == "list":
        return {"type": "array", "items": schema_of(rest)}
    if name == "point":
        corner = {"type": "integer"}
        return {"type": "object", "properties": {"x": corner, "y": corner}, "required": ["x", "y"]}
    simple = {"int": "integer", "num": "number", "bool": "boolean"}
    return {"type": simple.get(name, "string")}
