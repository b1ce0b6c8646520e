"""A run that is stopped goes on: nothing kept is computed twice, and the report is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.verify.test_verify import write_suite
from verify.answer_cache import AnswerCache
from verify.artifact import open_artifact
from verify.engines.kept import SLICE, KeptEngine, slice_of
from verify.engines.llama_cpp import LlamaCppEngine
from verify.engines.log_probabilities import Passage
from verify.engines.opening import open_engine
from verify.engines.transformers import TransformersEngine
from verify.teacher_forcing import AGAIN
from verify.verify import RESUMABLE, verify

PROMPTS, TOKENS = 4 * SLICE, 8
TWICE_MORE = 2 * AGAIN
"""Replies of the reference for the noise floor: each in a batch of its own, all in 16 bits."""
ALL = 3 * PROMPTS + TWICE_MORE
Run = Callable[[Path], Any]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), PROMPTS)


@pytest.fixture(scope="module")
def run(reference_folder: Path, artifacts: dict[str, Path], suite: Path) -> Run:
    """Verify a GGUF and an FP8 folder with a cache; what the report says, but for times."""

    def run_one(cache: Path) -> Any:
        made = [artifacts["Q8_0"], artifacts["FP8_DYNAMIC"]]
        report = verify(
            reference_folder, made, suite=suite, max_new_tokens=TOKENS, cache=cache, threads=1
        )
        content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        for timed in (content["reference"], *content["artifacts"]):
            del timed["seconds"]
        return content

    return run_one


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report of a run that nothing stopped."""
    return run(tmp_path_factory.mktemp("whole"))


def count_prompts(monkeypatch: pytest.MonkeyPatch, seen: list[int]) -> None:
    """Note how many prompts each batch of either engine has."""
    for engine, method, place in (
        (TransformersEngine, "_generate_batch", 0),
        (LlamaCppEngine, "_generate_group", 1),
    ):
        real = getattr(engine, method)

        def counting(self: Any, *asked: Any, real: Any = real, place: int = place) -> Any:
            seen.append(len(asked[place]))
            return real(self, *asked)

        monkeypatch.setattr(engine, method, counting)


def kept_prompts(cache: Path) -> int:
    """How many replies lie in a cache."""
    return sum(len(np.load(path)["lengths"]) for path in cache.glob("answers-*.npz"))


@pytest.mark.parametrize(
    ("engine", "method", "call", "kept"),
    [
        (TransformersEngine, "_generate_batch", 3, 2 * SLICE),
        (TransformersEngine, "_score_batch", 2, PROMPTS),
        (TransformersEngine, "_generate_batch", 4 + 3, PROMPTS + 2),
        (TransformersEngine, "_generate_batch", 4 + AGAIN + 1, PROMPTS + AGAIN),
        (LlamaCppEngine, "_generate_group", 4, PROMPTS + TWICE_MORE + SLICE),
        (LlamaCppEngine, "score", 3, 2 * PROMPTS + TWICE_MORE),
        (
            TransformersEngine,
            "_generate_batch",
            4 + AGAIN + 1 + 3,
            2 * PROMPTS + TWICE_MORE + 2 * SLICE,
        ),
    ],
)
def test_a_run_stopped_after_a_batch_asks_for_the_rest_alone(
    run: Run, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    engine: type, method: str, call: int, kept: int,
) -> None:  # fmt: skip
    real, calls = getattr(engine, method), iter(range(1, 1000))

    def stopping(self: Any, *asked: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return real(self, *asked, **more)

    monkeypatch.setattr(engine, method, stopping)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path)
    assert stopped.value.__notes__ == [RESUMABLE]
    monkeypatch.undo()
    assert kept_prompts(tmp_path) == kept
    seen: list[int] = []
    count_prompts(monkeypatch, seen)
    assert run(tmp_path) == whole
    assert sum(seen) == ALL - kept


@pytest.mark.parametrize("models_begun", [1, 2])
def test_a_run_killed_outright_goes_on(
    run: Run, whole: Any, reference_folder: Path, artifacts: dict[str, Path], suite: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_begun: int,
) -> None:  # fmt: skip
    words = ["verify", reference_folder, artifacts["Q8_0"], artifacts["FP8_DYNAMIC"]]
    words += ["--suite", suite, "--max-new-tokens", TOKENS, "--cache", tmp_path, "--threads", 1]
    command = [sys.executable, "-m", "hermes_quant", *map(str, words)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    before = models_begun - 1
    due = before * (PROMPTS // SLICE + AGAIN + 1) + 2
    begin = time.monotonic()
    while len(list(tmp_path.glob("answers-*.npz"))) < due and process.poll() is None:
        assert time.monotonic() - begin < 120
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
    kept = kept_prompts(tmp_path)
    assert before * (PROMPTS + TWICE_MORE) + 2 * SLICE <= kept < ALL
    seen: list[int] = []
    count_prompts(monkeypatch, seen)
    assert run(tmp_path) == whole
    assert sum(seen) == ALL - kept
    seen.clear()
    assert run(tmp_path) == whole
    assert seen == []


@pytest.mark.parametrize(("batch", "together"), [(None, 16), (8, 16), (5, 15), (16, 16), (40, 40)])
def test_a_slice_is_whole_batches(batch: int | None, together: int) -> None:
    assert slice_of(batch) == together


def test_a_slice_that_is_kept_holds_the_magnitudes_of_its_own_text_alone(
    calibrated: Path, tmp_path: Path
) -> None:
    """Another suite shares the slice, and not what was scored before it."""
    artifact = open_artifact(calibrated)
    first, second = (Passage(tuple(range(start, start + 12)), 1) for start in (40, 90))

    def seen(folder: Path, *passages: Passage) -> dict[str, float]:
        engine = open_engine(artifact)
        kept = KeptEngine.around(engine, AnswerCache.of_artifact(folder, artifact, engine.info))
        for passage in passages:
            kept.score([passage], top=4)
        kept.close()
        return {scale.name: scale.seen for scale in kept.stated_scales()}

    alone = seen(tmp_path / "alone", second)
    both = seen(tmp_path / "both", first, second)
    assert both != alone
    assert seen(tmp_path / "both", second) == alone
    assert seen(tmp_path / "both", first, second) == both


def test_a_model_whose_answers_are_all_kept_is_put_away(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is loaded to say how it computes; left open, one after another would fill the memory."""
    opened, closed = [], []
    for engine in (LlamaCppEngine, TransformersEngine):

        def opening(self: Any, *a: Any, real: Any = engine.__init__, **more: Any) -> None:
            real(self, *a, **more)
            opened.append(type(self))

        def closing(self: Any, real: Any = engine.close) -> None:
            real(self)
            closed.append(type(self))

        monkeypatch.setattr(engine, "__init__", opening)
        monkeypatch.setattr(engine, "close", closing)
    for engines in (3, 2):
        run(tmp_path)
        assert opened == closed
        assert len(opened) == engines
        opened.clear()
        closed.clear()
