"""Renders chat templates in a child process of fixed means.

In: a template and the variables it reads, as JSON values. Out: text, or a ConversationError that
says what the template did. `convert/template_worker.py` is the child and says what is bounded and
by which means: processor time, memory, length of output. A child that broke a limit is gone; the
next rendering starts another, so one bad template costs the others nothing.

Starting a child costs about 0.1 s, a rendering in it about what it costs in this process. A child
belongs to one `TemplateSandbox` and ends with it, or when this process ends, however it ends: its
standard input closes.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import ConversationError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one rendering may use: processor seconds, the child's memory, characters written."""

    cpu_seconds: float = 10.0
    memory_mib: int = 512
    characters: int = 8_000_000


class TemplateSandbox:
    """A child process that renders templates, started on first use and again after it was ended."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The template's text. Raises ConversationError, saying what the template did."""
        request = json.dumps({"template": template, "variables": dict(variables)}).encode("ascii")
        with self._lock:
            child = self._child = self._child or self._start()
            assert child.stdin is not None
            assert child.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died: the empty answer says so
                child.stdin.write(request + b"\n")
                child.stdin.flush()
            line = child.stdout.readline()
            if not line.endswith(b"\n"):
                self._child = None
                raise ConversationError(f"the chat template was stopped: {self._cause(child)}")
        answer: dict[str, str] = json.loads(line)
        if "error" in answer:
            raise ConversationError(f"the chat template failed: {answer['error']}")
        return answer["text"]

    def close(self) -> None:
        """End the child; the next rendering starts another."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            _end(child)

    def _start(self) -> subprocess.Popen[bytes]:
        limits = self.limits
        numbers = (limits.cpu_seconds, limits.memory_mib, limits.characters)
        child = subprocess.Popen(  # noqa: S603  our own file, no shell
            [sys.executable, "-I", str(Path(__file__).with_name("template_worker.py"))]
            + [str(number) for number in numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _end, child)
        return child

    def _cause(self, child: subprocess.Popen[bytes]) -> str:
        _end(child)
        if child.returncode == -signal.SIGPROF:
            return f"it used {self.limits.cpu_seconds:g} s of processor time without finishing"
        return f"its process ended with code {child.returncode}, most likely for lack of memory"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Close the pipes, which ends an idle child, and see that it is gone."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    try:
        child.wait(timeout=1)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
