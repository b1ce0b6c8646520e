"""A real vLLM server as a process: started, waited for, and ended with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.vllm.conftest import SERVER_PYTHON

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 30
_PR_SET_PDEATHSIG = 1
NAME = "hermes"


class NotServedError(Exception):
    """The server ended before it was ready; its log says why."""


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[str]:
    """The address of a server of `folder`, ready; gone when the block ends, however it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--served-model-name {NAME} --max-model-len 1024 --enforce-eager --dtype bfloat16"
    tools = "--enable-auto-tool-choice --tool-call-parser hermes"
    words = (
        f"-m vllm.entrypoints.openai.api_server {options} {tools} --host 127.0.0.1 --port {port}"
    )
    with log.open("wb") as file:
        process = subprocess.Popen(
            [SERVER_PYTHON, *words.split(), "--model", folder],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=_environment(),
            start_new_session=True,  # a group of its own, to end as one
            preexec_fn=_end_with_parent,
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _stop(process)


def _environment() -> dict[str, str]:
    """Ours without what would reach into the other environment, and few threads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    return kept | {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _end_with_parent() -> None:
    """Ask Linux to end the server if the tests are killed and cannot."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_until_ready(process: subprocess.Popen[bytes], health: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise NotServedError(f"the server ended with {process.returncode}")
        try:
            if httpx.get(health, timeout=5, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"the server was not ready after {START_TIMEOUT_S} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End all of its processes: asked first, then killed, and looked after until none is left."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, request)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            process.poll()
            if not session_members(process.pid):
                return
            time.sleep(0.5)
    raise AssertionError(f"still running: {session_members(process.pid)}")


def session_members(session: int) -> list[int]:
    """Processes of a session that still run; a zombie does not."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            state, _parent, _group, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if state != "Z" and int(its_session) == session:
                found.append(int(stat.parent.name))
    return found
