"""How models are run: the same options on the command line and in Python, part of the evidence."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hermes_quant
from tests.command import invoke
from tests.verify.test_verify import write_gate, write_suite
from verify.verify import verify

WORDS = {
    "--kv-type": "q8_0", "--activations": "16", "--dtype": "bfloat16", "--batch": 3,
    "--threads": 1, "--max-new-tokens": 4,
}  # fmt: skip


def engines_of(report: Any) -> dict[str, Any]:
    found = {one["name"]: one["engine"] for one in report["artifacts"]}
    return {"reference": report["reference"]["engine"], **found}


def test_every_option_reaches_its_engine_from_both_sides(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    suite, gate = write_suite(tmp_path, 4), write_gate(tmp_path)
    made = [artifacts["Q8_0"], artifacts["FP8_DYNAMIC"]]
    words = [word for pair in WORDS.items() for word in pair]
    done = invoke(
        "verify", reference_folder, *made, "--suite", suite, "--gate", gate, *words,
        "--cache", tmp_path / "cache", "--json",
    )  # fmt: skip
    assert done.exit_code in (1, 3), done.output
    report = json.loads(done.stdout)
    engines = engines_of(report)
    assert report["max_new_tokens"] == 4
    assert {(e["batch"], e["threads"], e["device"]) for e in engines.values()} == {(3, 1, "cpu")}
    assert (engines["reference"]["dtype"], engines["reference"]["kv_type"]) == ("bfloat16",) * 2
    assert engines["mini-Q8_0.gguf"]["kv_type"] == "q8_0"
    folder = engines["mini-FP8_DYNAMIC"]
    assert (folder["dtype"], "W8A16" in folder["activations"]) == ("float32", True)
    floor = next(o for o in report["artifacts"][0]["outcomes"] if o["check"] == "noise_floor")
    for part in ("prompts", "replies"):
        assert floor["verdict"]["numbers"][f"{part}_in_16_bits"] is None
        assert floor["verdict"]["numbers"][f"{part}_itself"] is not None
    again = verify(
        reference_folder, made, suite=suite, gate=gate, max_new_tokens=4, kv_type="q8_0",
        activations=16, dtype="bfloat16", batch=3, threads=1,
    )  # fmt: skip
    assert engines_of(json.loads(json.dumps(again.to_dict()))) == engines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_a_device_that_is_not_there_is_one_line_and_nothing_is_run(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path, device: str
) -> None:
    cache = tmp_path / "cache"
    done = invoke(
        "verify", reference_folder, artifacts["Q8_0"], "--suite", write_suite(tmp_path, 4),
        "--device", device, "--cache", cache,
    )  # fmt: skip
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: device '{device}': ")
    assert done.stderr.count("\n") == 1
    assert not cache.exists()


def test_both_signatures_have_the_same_options() -> None:
    ours = {*inspect.signature(verify).parameters}
    theirs = {*inspect.signature(hermes_quant.verify).parameters}
    assert theirs - ours == {"out", "as_json"}
    assert ours - theirs == {"fixture", "on_progress", "open_engine", "open_reference"}
