"""Jobs on threads, and how far they are.

`run_all` draws jobs from an iterable one at a time, so that a plan of a million blocks is never a
list of them. The first error of any thread, or Ctrl-C, ends it: what has begun is finished, and
nothing else begins. `cores` is how many threads are worth while. `Meter` adds up what the threads
report of one phase of a run.
`let_openmp_sleep` is about the threads of the libraries that run models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

Progress = Callable[[int, int, str], None]
"""Called with bytes done so far, bytes in all, and what was just done; each phase counts anew."""
Steps = Callable[[str, int, int], None]
"""Called with the name of what is worked on, its steps done so far, and its steps in all."""


def cores() -> int:
    """Processors that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def let_openmp_sleep() -> None:
    """Tell OpenMP's threads to sleep while they wait; before torch or llama.cpp load.

    Else they spin: on a machine with other work, many times slower for a small model.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_all(threads: int, jobs: Iterable[Callable[[], None]]) -> None:
    """Run every job, or raise the first error."""
    waiting, lock, stop = iter(jobs), threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            job()

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(work) for _ in range(threads)]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
        for future in finished:
            future.result()


class Meter:
    """Bytes of one phase, added up over all threads and passed on."""

    def __init__(self, on_progress: Progress | None, total: int, done: int = 0) -> None:
        self._on_progress, self._total, self._done = on_progress, total, done
        self._lock = threading.Lock()

    def add(self, size_bytes: int, what: str) -> None:
        """So many more are done."""
        with self._lock:
            self._done += size_bytes
            if self._on_progress:
                self._on_progress(self._done, self._total, what)
