"""Answers are computed once: kept by content, made anew when what they depend on changes."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.errors import UnsupportedError
from convert.rendering import Tokenizer
from tests.miniature import change_json
from tests.verify.test_verify import write_suite
from verify.answer_cache import AnswerCache, default_folder
from verify.artifact import Artifact, Kind, open_artifact
from verify.engines import LOG_PROBABILITIES, NARROWS, Engine
from verify.engines.log_probabilities import Passage, Reduction, Scored
from verify.engines.opening import open_engine
from verify.engines.scripted import INFO, ScriptedEngine
from verify.evidence import Reference, make_prompts
from verify.reference_run import run_reference
from verify.verify import verify


class Counting(ScriptedEngine):
    """Answers and scores without weights, and counts how often it is asked."""

    opened = 0
    scored = 0
    fails = False

    def __init__(self) -> None:
        super().__init__(
            lambda prompt: [1, len(prompt) % 7, 260],
            replace(INFO, capabilities=frozenset({LOG_PROBABILITIES, NARROWS})),
        )
        Counting.opened += 1
        self.narrowed = False

    def narrow(self) -> None:
        self.narrowed = True

    def score(self, passages: list[Passage], *, top: int, always: tuple[int, ...] = (),
              on_progress: object = None) -> list[Scored]:  # fmt: skip
        if Counting.fails:
            raise KeyboardInterrupt
        Counting.scored += 1
        found = []
        for passage in passages:
            reduction = Reduction(passage, top=top, always=always)
            rng = np.random.default_rng(len(passage.ids) + self.narrowed)
            reduction.add(rng.normal(size=(len(passage.targets), 320)).astype(np.float32))
            found.append(reduction.finish())
        return found


Run = Callable[..., Reference]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the reference in a folder; `Counting` counts what was done for it."""

    def run_one(folder: Path, text: str = "hello", **options: object) -> Reference:
        Counting.opened = Counting.scored = 0
        with Checkpoint.open(folder) as checkpoint:
            tokenizer = Tokenizer.open(folder)
            messages = ({"role": "user", "content": text},)
            conversations = (Conversation("a", messages), Conversation("b", messages))
            prompts = make_prompts(checkpoint, tokenizer, conversations, 8)
            base = Reference(checkpoint, tokenizer, conversations, prompts)
            cache = AnswerCache.of_reference(tmp_path / "cache", checkpoint, options)
            return run_reference(Counting, base, max_new_tokens=8, cache=cache)

    return run_one


@pytest.fixture
def folder(reference_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference_folder, tmp_path / "mini"))


def same(a: Reference, b: Reference) -> bool:
    assert a.forced is not None
    assert b.forced is not None
    pairs = zip(
        *((*f.scored, f.long, *f.alone, *f.narrow, f.long_narrow) for f in (a.forced, b.forced)),
        strict=True,
    )
    fields = ("targets", "candidates", "log_probs", "log_tail", "best", "best_log_probs")
    return (
        a.answers == b.answers
        and a.forced.answered_alone == b.forced.answered_alone != ()
        and a.forced.answered_narrow == b.forced.answered_narrow != ()
        and a.engine == b.engine
        and all(np.array_equal(getattr(x, f), getattr(y, f)) for x, y in pairs for f in fields)
    )


def test_what_is_kept_is_read_and_no_engine_opened(
    run: Run, folder: Path, tmp_path: Path, reference_folder: Path
) -> None:
    first = run(folder)
    assert Counting.opened == 1
    second = run(folder)
    assert (Counting.opened, Counting.scored) == (0, 0)
    assert same(first, second)
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy))
    assert same(first, run(moved))
    assert Counting.opened == 0, "dates and places are no content"


def change_weight(folder: Path) -> None:
    stamp = (folder / "model.safetensors").stat()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    os.utime(folder / "model.safetensors", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))


def change_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("assistant", "Assistant"))


def change_config(folder: Path) -> None:
    change_json(folder / "config.json", rms_norm_eps=1e-6)


@pytest.mark.parametrize("change", [change_weight, change_template, change_config])
def test_another_weight_or_template_is_another_reference(
    run: Run, folder: Path, change: Callable[[Path], None]
) -> None:
    run(folder)
    change(folder)
    run(folder)
    assert Counting.opened == 1


def test_another_prompt_is_another_question(run: Run, folder: Path) -> None:
    run(folder)
    run(folder, "hello!")
    assert Counting.opened == 1
    run(folder)
    assert Counting.opened == 0


def test_another_option_is_another_run_of_it(run: Run, folder: Path) -> None:
    """In another dtype, batch or number of threads the last bits differ."""
    run(folder, dtype="float32", batch=None)
    run(folder, dtype="bfloat16", batch=None)
    assert Counting.opened == 1
    run(folder, dtype="float32", batch=3)
    assert Counting.opened == 1
    run(folder, dtype="float32", batch=None)
    assert Counting.opened == 0


def test_an_artifact_is_kept_by_its_bytes_and_by_what_its_engine_says(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    made = [shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / name) for name in "ab"]
    gguf = [Path(shutil.copy(artifacts["Q8_0"], tmp_path / f"{name}.gguf")) for name in "ab"]

    def where(path: Path, **changes: object) -> Path:
        info = replace(INFO, **changes)  # type: ignore[arg-type]
        return AnswerCache.of_artifact(tmp_path, open_artifact(path), info).path("answers", {})

    assert where(made[0]) == where(made[1]), "places are no content"
    assert where(gguf[0]) == where(gguf[1]) != where(made[0])
    for change in ({"kv_type": "q8_0"}, {"batch": 2}, {"threads": 3}, {"device": "cuda"}):
        assert where(gguf[0], **change) != where(gguf[0])
    content = bytearray(gguf[1].read_bytes())
    content[-1] ^= 1
    gguf[1].write_bytes(content)
    assert where(gguf[0]) != where(gguf[1])
    change_json(made[1] / "config.json", rms_norm_eps=1e-6)
    assert where(made[0]) != where(made[1])


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_damaged_entry_is_ignored_with_a_word(
    run: Run, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    first = run(folder)
    entries = sorted((tmp_path / "cache").iterdir())
    kinds = [e.name.split("-")[0] for e in entries]
    answers = ["answers"] * 3  # all at once, alone (both prompts are the same) and in 16 bits
    assert kinds == [*answers, "engine", *["scores"] * (len(kinds) - 4)]
    for entry in entries:
        content = bytearray(entry.read_bytes())
        content[100] ^= 1  # inside the first array, which the zip's CRC covers
        cut = {"cut": content[: len(content) // 2], "flipped": content, "emptied": b""}
        entry.write_bytes(cut[damage])
    with caplog.at_level(logging.WARNING):
        again = run(folder)
    assert Counting.opened == 1
    assert same(first, again)
    assert caplog.text.count("computed anew") == len(entries) - 1, "what the engine is, it says"
    run(folder)
    assert Counting.opened == 0, "it was written anew"


def test_an_interrupted_run_goes_on_from_the_answers(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Counting, "fails", True)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    kept = sorted(e.name.split("-")[0] for e in (tmp_path / "cache").iterdir())
    assert kept == ["answers", "engine"]
    monkeypatch.setattr(Counting, "fails", False)

    def generate(self: Counting, prompts: list[list[int]], **asked: Any) -> list[list[int]]:
        assert self.narrowed or len(prompts) == 1, "all answered again, and not alone"
        return ScriptedEngine.generate(self, prompts, **asked)

    monkeypatch.setattr(Counting, "generate", generate)
    assert run(folder).answers[0].ids[-1] == 260
    assert Counting.scored > 0


def test_a_folder_that_cannot_be_written_stops_nothing(
    run: Run, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    assert run(folder).forced is not None
    assert caplog.text.count("cannot be written") == 1


def test_the_verb_loads_the_reference_once_for_all_runs(
    folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    opened: list[Kind] = []

    def counting(artifact: Artifact) -> Engine:
        opened.append(artifact.kind)
        return open_engine(artifact)

    seen = []
    for _ in range(2):
        report = verify(
            folder,
            [artifacts["F32"], artifacts["Q8_0"]],
            suite=write_suite(tmp_path, 4),
            max_new_tokens=4,
            cache=tmp_path / "cache",
            open_engine=counting,
        )
        content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        seen.append([a["outcomes"] for a in content["artifacts"]])
    assert opened == [Kind.CHECKPOINT, Kind.GGUF, Kind.GGUF, Kind.GGUF, Kind.GGUF], (
        "the answers of a caller's own engines are not kept"
    )
    assert seen[0] == seen[1]
    assert {o["check"] for o in seen[0][0]} >= {"chat_kl", "reply_kl", "trigger", "long_context"}


def test_what_a_callers_own_engine_answers_is_never_taken_for_ours(
    folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """The weights, prompts and options are the same; the next run's reference must not be."""

    def scripted(artifact: Artifact) -> Engine:
        return ScriptedEngine(lambda prompt: [1, 260])

    suite = write_suite(tmp_path, 4)

    def names(**own: Any) -> list[str]:
        reports = (
            verify(folder, [artifacts["F32"]], suite=suite, max_new_tokens=4, cache=cache, **own)
            for cache in (tmp_path / "cache",) * 2
        )
        return [report.reference.engine.name for report in reports]

    assert names(open_engine=scripted) == ["scripted"] * 2
    assert names() == ["transformers"] * 2


def test_a_reference_whose_cache_is_rounded_is_refused_and_never_kept(
    folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing in the key would tell it from the one that every later run needs."""
    with pytest.raises(UnsupportedError, match=r"keys and values in float8_e4m3, scale 1\.0, exp"):
        verify(
            folder,
            [artifacts["F32"]],
            suite=write_suite(tmp_path, 4),
            max_new_tokens=4,
            cache=tmp_path / "cache",
            open_engine=partial(open_engine, kv_type="fp8"),
        )
    assert not list(tmp_path.glob("cache/*"))


def test_the_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "hermes-quant"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache/hermes-quant"
