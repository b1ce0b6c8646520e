"""Score the held-out prompts: ``python evaluate.py --model DIR`` prints the table of bars.

Greedy decoding in float32 of the committed bfloat16 weights, through transformers and the model's
own chat templates. A tool prompt counts only when every call is exact: the same names and strictly
equal arguments (``1`` is not ``1.0`` and not ``true``), in any order, and nothing but calls in the
reply.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from harmless import is_refusal
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
OPEN, CLOSE = "<tool_call>\n", "\n</tool_call>"


def load_prompts(folder: Path, kinds: list[str] | None, limit: int | None) -> list[dict[str, Any]]:
    """All prompts of the wanted kinds, at most ``limit`` of each."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl")):
        if not kinds or path.stem in kinds:
            rows += [json.loads(line) for line in path.read_text().splitlines()[:limit]]
    return rows


def canonical(value: Any) -> str:
    """Text that is equal exactly when two JSON values are equal, types included."""
    return json.dumps(value, sort_keys=True)


def parse_calls(text: str) -> list[str] | None:
    """The calls of a reply in canonical form, or None when the reply is not made of calls only."""
    if not (text.startswith(OPEN) and text.endswith(CLOSE)):
        return None
    bodies = text[len(OPEN) : -len(CLOSE)].split(f"{CLOSE}\n{OPEN}")
    try:
        return sorted(canonical(json.loads(body)) for body in bodies)
    except json.JSONDecodeError:
        return None


def correct(row: dict[str, Any], reply: str) -> bool:
    """Whether a reply is what the prompt expects."""
    expected = row["expected"]
    if expected.get("calls"):
        return parse_calls(reply) == sorted(canonical(c) for c in expected["calls"])
    if "no_tool" in row["tags"]:
        return "<tool_call>" not in reply and not is_refusal(reply) and bool(reply.strip())
    if "json" in expected:
        try:
            return canonical(json.loads(reply)) == canonical(expected["json"])
        except json.JSONDecodeError:
            return False
    if "refused" in row["tags"]:
        return is_refusal(reply)
    return bool(reply == expected["text"])


def generate(model: Any, tokenizer: Any, rows: list[dict[str, Any]], tokens: int) -> list[str]:
    """Greedy replies; prompts of similar length share a batch."""
    texts = [
        tokenizer.apply_chat_template(
            row["messages"], tools=row.get("tools"), tokenize=False, add_generation_prompt=True
        )
        for row in rows
    ]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["tags"], len(encoded[i])))
    replies = [""] * len(rows)
    tokenizer.padding_side = "left"
    for at in range(0, len(order), 64):
        part = order[at : at + 64]
        batch = tokenizer.pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt")
        batch = batch.to(model.device)
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
        for index, ids in zip(part, out[:, batch["input_ids"].shape[1] :], strict=True):
            replies[index] = tokenizer.decode(ids, skip_special_tokens=True)
    return replies


def table(rows: list[dict[str, Any]], replies: list[str]) -> dict[str, tuple[int, int]]:
    """Hits and count per kind, and for the bars that run over several kinds."""
    score: dict[str, list[bool]] = defaultdict(list)
    for row, reply in zip(rows, replies, strict=True):
        kind = row["id"].rsplit("-", 1)[0]
        good = correct(row, reply)
        score[kind].append(good)
        if row["expected"].get("calls"):
            score["= exact calls"].append(good)
        if kind != "refused":
            score["= wrong refusals"].append(is_refusal(reply))
    return {name: (sum(hits), len(hits)) for name, hits in sorted(score.items()) if hits}


def main() -> None:
    """Score a model folder and print the table; ``--failures`` shows what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts")
    parser.add_argument("--kinds", nargs="*")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--failures", type=int, default=0)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = load_prompts(options.prompts, options.kinds, options.limit)
    began = time.time()
    replies = generate(model, tokenizer, rows, options.max_new_tokens)
    for name, (hits, count) in table(rows, replies).items():
        print(f"{name:20} {hits:5} of {count:5}  {100 * hits / count:6.2f} %")
    print(f"{len(rows)} prompts in {time.time() - began:.0f} s")
    wrong = [(r, t) for r, t in zip(rows, replies, strict=True) if not correct(r, t)]
    for row, reply in wrong[: options.failures]:
        print(f"\n{row['id']}: {row['messages'][-1]['content']}\n  expected {row['expected']}")
        print(f"  reply    {reply!r}")


if __name__ == "__main__":
    main()
