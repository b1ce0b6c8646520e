"""The kernels are optional for users; for us, a kernel that does not compile is a failure."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import pytest

from quantize import kernels

BUILDS = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}, "avx2": {"avx2"}}
CPUINFO = Path("/proc/cpuinfo")


def test_where_there_is_a_compiler_every_build_of_the_processor_is_there() -> None:
    if platform.machine() != "x86_64" or not CPUINFO.is_file():
        pytest.skip("the kernels are for x86-64, and this asks Linux what the processor has")
    if not any(map(shutil.which, ("gcc", "clang"))):
        pytest.skip("no compiler: ggml and numpy do the work here")
    found = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
    assert found is not None
    flags = set(found[1].split())
    expected = [name for name, needed in BUILDS.items() if needed <= flags]
    assert list(kernels.BUILDS) == [*expected, "baseline"], "python -m pip install -e . says why"
