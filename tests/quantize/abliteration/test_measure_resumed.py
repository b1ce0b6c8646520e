"""Measuring survives being killed, and knows when what is left is of something else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.errors import InputError
from quantize.abliteration.measure import _left_over, measure
from quantize.abliteration.measurement import ARRAYS_NAME, JSON_NAME, read_measurement
from quantize.abliteration.prompts import HARMLESS, REFUSED

NANO = Path(__file__).parents[3] / "examples" / "hermes-nano"
PROGRESS = Path(".hermes-quant-staging") / "progress.npz"
RUN = """
import os, signal, sys
from pathlib import Path
from quantize.abliteration.measure import measure
model, refused, harmless, out, stage, calls = sys.argv[1:]
seen = 0
def look(what, done, total):
    global seen
    now = "means" if (Path(out) / "measurement.json").exists() else "replies"
    print(now, what, flush=True)
    seen += now == stage
    if seen == int(calls):
        os.kill(os.getpid(), signal.SIGKILL)
measure(model, Path(refused), Path(harmless), Path(out), on_progress=look)
"""


class StopError(Exception):
    """Something ends the run."""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    found = []
    for kind in (REFUSED, HARMLESS):
        lines = (NANO / "abliteration" / f"{kind}.jsonl").read_text().splitlines()[:20]
        found.append(tmp_path / f"{kind}.jsonl")
        found[-1].write_text("\n".join(lines) + "\n")
    return found[0], found[1]


def run(files: tuple[Path, Path], out: Path, stage: str = "", calls: int = -1) -> tuple[int, list]:
    """The exit status, and every step of every pass over the layers that it took."""
    words = [sys.executable, "-c", RUN, NANO, *files, out, stage, calls]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, env=one_thread
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, done.stdout.splitlines()


def test_a_run_that_is_killed_twice_goes_on_where_it_was(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    _, whole = run(files, tmp_path / "whole")
    replies, means = ([step for step in whole if step.startswith(s)] for s in ("replies", "means"))
    out = tmp_path / "m"
    killed, _ = run(files, out, "replies", len(replies) // 2)
    assert killed == -signal.SIGKILL
    assert (out / PROGRESS).exists()
    assert not (out / JSON_NAME).exists()
    killed, second = run(files, out, "means", len(means) - 1)
    assert killed == -signal.SIGKILL
    assert 0 < sum(step.startswith("replies") for step in second) < len(replies)
    ended, third = run(files, out)
    assert ended == 0
    assert 0 < len(third) < len(means), "no reply is asked for again, no first layer is run again"
    assert third[0] != means[0]
    for name in (JSON_NAME, ARRAYS_NAME):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {path.name for path in out.iterdir()} == {JSON_NAME, ARRAYS_NAME}


def stopped(model: Path, files: tuple[Path, Path], out: Path, stage: str) -> None:
    """A run that ends in the second layer of a stage."""

    def look(what: str, done: int, total: int) -> None:
        at = "means" if (out / JSON_NAME).exists() else "replies"
        if (at, what.split()[1]) == (stage, "1"):
            raise StopError

    with pytest.raises(StopError):
        measure(str(model), *files, out, on_progress=look)
    assert (out / PROGRESS).exists()


def test_what_a_calibration_left_in_the_folder_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    progress = tmp_path / "progress.npz"
    np.savez(progress, key=np.array("ab12" * 16), layer=np.array(1))
    assert _left_over(tmp_path, progress, {"model": "a"}) is None


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"schema_version": 2, "made_of": {}, "baseline": 3},
        {"schema_version": 2, "made_of": [], "baseline": {"first_tokens": []}},
    ],
)
def test_a_measurement_of_other_values_is_one_line(tmp_path: Path, content: object) -> None:
    (tmp_path / JSON_NAME).write_text(json.dumps(content))
    with pytest.raises(InputError, match="not a measurement this version reads"):
        read_measurement(tmp_path)


@pytest.mark.parametrize("stage", ["replies", "means"])
@pytest.mark.parametrize("change", ["model", "refused file"])
def test_what_is_left_of_something_else_is_thrown_away_with_a_word(
    files: tuple[Path, Path],
    tmp_path: Path,
    stage: str,
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = shutil.copytree(NANO, tmp_path / "nano", ignore=shutil.ignore_patterns("prompts"))
    stopped(model, files, tmp_path / "m", stage)
    if change == "model":
        (model / "model.safetensors").touch()
    else:
        files[0].write_text("".join(files[0].read_text().splitlines(keepends=True)[1:]))
    capsys.readouterr()
    again = measure(str(model), *files, tmp_path / "m")
    assert f"the {change} changed since the last run; measuring afresh" in capsys.readouterr().err
    wanted = measure(str(model), *files, tmp_path / "wanted")
    assert json.dumps(again.measurement.prompts.to_dict()) == json.dumps(
        wanted.measurement.prompts.to_dict()
    )
    arrays = (tmp_path / "m" / ARRAYS_NAME).read_bytes()
    assert arrays == (tmp_path / "wanted" / ARRAYS_NAME).read_bytes()
    with pytest.raises(InputError, match="finished measurement of another contrast"):
        measure(str(model), *files, tmp_path / "m", contrast="complied")
    assert (tmp_path / "m" / ARRAYS_NAME).read_bytes() == arrays, "a finished one is not replaced"
