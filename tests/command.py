"""The command line as a process, and, where that is not the question, within this one."""

from __future__ import annotations

import subprocess
import sys

from typer.testing import CliRunner, Result

import hermes_quant


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "hermes_quant", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(hermes_quant.app, [str(word) for word in arguments])
