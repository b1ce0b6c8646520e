"""llama.cpp's own converter, from the source distribution of llama-cpp-python.

The package on the registry carries llama.cpp under `vendor/`: `convert_hf_to_gguf.py`, its gguf-py,
and the tools. The quantizer is the installed package's library; tools that are programs of their
own are compiled, once for each work folder, with cmake from the PATH (`pip install cmake` has one).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

PRODUCTS = {"ggml-base": "libggml-base.so"}
"""The file of a target that is no program."""


def fetch_source(work: Path) -> Path:
    """The `vendor/llama.cpp` folder of the installed version's source distribution."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    source = work / name / "vendor" / "llama.cpp"
    if not source.is_dir():
        work.mkdir(parents=True, exist_ok=True)
        archive = work / f"{name}.tar.gz"
        if not archive.is_file():
            requirement = f"llama-cpp-python=={version('llama-cpp-python')}"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            # building metadata needs the build backend; an isolated environment provides it
            pip += ["--no-binary", "llama-cpp-python", "--dest", str(work), requirement]
            subprocess.run(pip, check=True)
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
    return source


def build_tools(source: Path, work: Path, names: tuple[str, ...], *, native: bool = False) -> Path:
    """The folder of the programs `names`, compiled under `work` if they are not there yet.

    As the package on the registry is built, for any processor; `native`: with `-march=native`,
    which llama.cpp's own option leaves out for the quantizers. `ggml-base` is their library.
    """
    build = work / ("build-native" if native else "build")
    if all((build / "bin" / PRODUCTS.get(name, name)).is_file() for name in names):
        return build / "bin"
    cmake = shutil.which("cmake")
    if cmake is None:
        raise RuntimeError("cmake is not on the PATH; it builds llama.cpp's tools (pip has one)")
    off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_TESTS")
    flags = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in off)]
    flags.append(f"-DGGML_NATIVE={'ON' if native else 'OFF'}")
    if native:
        flags += ["-DCMAKE_C_FLAGS=-march=native", "-DCMAKE_CXX_FLAGS=-march=native"]
    for command in (
        [cmake, "-S", str(source), "-B", str(build), *flags],
        [cmake, "--build", str(build), "--parallel", "2", "--target", *names],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {ran.stderr[-2000:]}")
    return build / "bin"


def commit(source: Path) -> str:
    """Which llama.cpp it is, as far as the distribution says."""
    changelog = source.parents[1] / "CHANGELOG.md"
    lines = changelog.read_text().splitlines() if changelog.is_file() else []
    found = [line for line in lines if "Update llama.cpp to" in line]
    return found[0].rpartition("llama.cpp to ")[2] if found else "unknown"


def convert(source: Path, model: Path, out: Path, dtype: str, metadata: Path) -> None:
    """Run `convert_hf_to_gguf.py`; raises with its last words when it fails."""
    command = [sys.executable, str(source / "convert_hf_to_gguf.py"), str(model)]
    command += ["--outtype", dtype.lower(), "--outfile", str(out), "--metadata", str(metadata)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"the converter failed on {model.name}: {ran.stderr[-2000:]}")
