"""Runs that are killed at a chosen system call or moment, rerun, and compared with one left alone.

`python -m tests.faults SOURCE WORK [--every] [--moments N]` prints a line for each thing that went
wrong and a summary, and exits with 1 if anything did. Each run is a forked child, so that it can be
killed (SIGKILL, by its own hand in place of its n-th call, or by its parent) without starting an
interpreter; the calls are counted by replacing them in the child's `os`. A write that is killed has
written half of its bytes. After the kill the power is cut, too: a random half of the writes that
were not flushed is lost (`power_loss.py`). Then every file under a final name must be whole;
sometimes a byte of what was staged is flipped; then the run is repeated in full, and everything
must be byte for byte what an undisturbed run makes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert import staged_files
from convert.journal import SUFFIX
from convert.memory import WORKING_BYTES_PER_VALUE
from convert.staging import STAGING_NAME
from quantize.job import quantize
from tests.power_loss import FLUSHES, MOVES, PATH_WRITES, WRITES, WriteLog, lose, replay, unseen

CALLS = (*WRITES, *FLUSHES, *MOVES, "posix_fallocate", "ftruncate", "unlink", "mkdir", "rmdir")
TARGETS = ["FP8_TENSOR", "NVFP4A16", "Q8_0", "BF16"]
MEMORY_BYTES = WORKING_BYTES_PER_VALUE * 64 * 512
"""Makes several blocks of a miniature's matrices."""


def instrument(on_call: Callable[[str, Callable[[], object]], None], log: WriteLog) -> None:
    """Call `on_call` in front of every call, with its name and what does half of it."""
    for owner, name in [*((os, name) for name in CALLS), *((Path, name) for name in PATH_WRITES)]:
        original = getattr(owner, name)

        def call(*a: Any, _original: Any = original, _name: str = name, **k: Any) -> Any:
            if _name in WRITES or _name in PATH_WRITES:
                half = (a[0], a[1][: len(a[1]) // 2], *a[2:])
                on_call(_name, lambda: log.call(_name, _original, half, k))
            else:
                on_call(_name, lambda: None)
            return log.call(_name, _original, a, k)

        setattr(owner, name, call)


def forked(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run `work` in a child; its exit code, -9 if it was killed."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Trial:
    """One source, what was there before, and what an undisturbed run makes."""

    def __init__(self, source: Path, work: Path, *, force: bool) -> None:
        self.source, self.work, self.force = source, work, force
        self.calls: list[str] = []
        self.failures: list[str] = []
        self.trials = self.killed = 0
        self.old, self.log = work / "old", work / "log"
        shutil.rmtree(work, ignore_errors=True)
        if force:
            quantize(str(source), self.old, TARGETS, name="m", metadata=self.metadata)
            (self.old / "m-NVFP4A16" / "extra").write_text("mine")
        begin = time.monotonic()
        assert forked(lambda: self.make(self.prepared("whole"), threads=2)) == 0
        self.seconds = time.monotonic() - begin
        self.whole = contents(work / "whole")
        assert not any(STAGING_NAME in name for name in self.whole)
        self.before = contents(self.old) if force else {}

    @property
    def metadata(self) -> Path:
        path = self.work / "metadata.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"general.author": "Somebody"}')
        return path

    def prepared(self, name: str) -> Path:
        out = self.work / name
        shutil.rmtree(out, ignore_errors=True)
        self.log.unlink(missing_ok=True)
        if self.force:
            shutil.copytree(self.old, out)
        return out

    def make(self, out: Path, threads: int) -> None:
        staged_files.DIRTY_BYTES = 1 << 17
        quantize(
            str(self.source),
            out,
            TARGETS,
            name="m",
            force=self.force,
            threads=threads,
            memory_bytes=threads * MEMORY_BYTES,
        )

    def count(self) -> list[str]:
        """The calls that an undisturbed run makes, in order."""
        log, out = self.work / "calls", self.prepared("counted")

        def counted() -> None:
            names: list[str] = []
            written = WriteLog(self.log)
            instrument(lambda name, _: names.append(name), written)
            self.make(out, 1)
            written.end(out)
            os.close(os.open(log, os.O_WRONLY | os.O_CREAT))
            with log.open("w") as stream:
                stream.write("\n".join(names))

        assert forked(counted) == 0
        disk = replay(self.log)
        self.failures += [f"undisturbed: {fault}" for fault in (*disk.faults, *unseen(out, disk))]
        return log.read_text().split()

    def kill_at(self, point: int) -> None:
        """Kill a run in its call number `point`, then see what comes of it."""
        out, calls = self.prepared("trial"), iter(range(1 << 30))

        def die(name: str, half: Callable[[], object]) -> None:
            if next(calls) == point:
                half()
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            instrument(die, WriteLog(self.log))
            self.make(out, 1)

        self.judge(f"call {point}", out, forked(work), flip=point % 3 == 1)

    def kill_after(self, seconds: float) -> None:
        """Kill a run on two threads after a time."""
        out = self.prepared("trial")

        def work() -> None:
            instrument(lambda *_: None, WriteLog(self.log))
            self.make(out, 2)

        self.judge(f"{seconds:.3f} s", out, forked(work, seconds), flip=False)

    def judge(self, where: str, out: Path, code: int, *, flip: bool) -> None:
        self.trials += 1
        self.killed += code == -signal.SIGKILL
        if code not in (0, -signal.SIGKILL):
            self.failures.append(f"killed at {where}: it ended with {code}")
        lost = lose(out, replay(self.log), random.Random(where))
        self.failures += [f"killed at {where}: {fault}" for fault in lost]
        for name, data in contents(out).items():
            known = (self.whole.get(name), self.before.get(name))
            if not name.startswith(STAGING_NAME) and data not in known:
                self.failures.append(f"killed at {where}: {name} is not whole")
        if flip:
            flip_a_byte(out / STAGING_NAME)
        if forked(lambda: self.make(out, 1)) != 0:
            self.failures.append(f"killed at {where}: the rerun failed")
        elif contents(out) != self.whole:
            found = contents(out)
            names = {n for n in {*found, *self.whole} if found.get(n) != self.whole.get(n)}
            self.failures.append(f"killed at {where}: the rerun made other bytes: {names}")


def contents(out: Path) -> dict[str, bytes]:
    """Every file by its path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def flip_a_byte(staging: Path) -> None:
    """Damage what a power loss could have lost: a byte in the middle of every staged file."""
    for path in staging.rglob("*"):
        if path.suffix in (".gguf", ".safetensors") and path.stat().st_size:
            with path.open("r+b") as stream:
                stream.seek(path.stat().st_size // 2)
                (byte,) = stream.read(1)
                stream.seek(-1, os.SEEK_CUR)
                stream.write(bytes([byte ^ 0x10]))
        elif path.suffix == SUFFIX:
            with path.open("ab") as stream:
                stream.write(b"\1" * 17)  # a record that was being written


def chosen(calls: list[str], every: bool) -> list[int]:
    """Points to kill at: all, or one of every kind."""
    if every:
        return list(range(len(calls)))
    kinds = sorted(set(calls))
    generator = random.Random(20_261_121)
    return [generator.choice([i for i, n in enumerate(calls) if n == kind]) for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--moments", type=int, default=2)
    options = parser.parse_args()
    failures = 0
    for force in (False, True):
        trial = Trial(options.source, options.work / ("force" if force else "new"), force=force)
        calls = trial.count()
        points = chosen(calls, options.every)
        for point in points:
            trial.kill_at(point)
        generator = random.Random(20_261_121)
        for _ in range(options.moments):
            trial.kill_after(generator.uniform(0, trial.seconds))
        print(*trial.failures, sep="\n", end="\n" * bool(trial.failures))
        kinds = ", ".join(f"{calls.count(kind)} {kind}" for kind in sorted(set(calls)))
        print(
            f"{'over old outputs' if force else 'new outputs'}: {len(points)} of {len(calls)} calls"
            f" ({kinds}) and {options.moments} moments; {trial.killed} of {trial.trials} killed,"
            f" {len(trial.failures)} failures"
        )
        failures += len(trial.failures)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
