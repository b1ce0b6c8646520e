"""The house: imports go one way, heavy packages have one door, and no machine's paths inside."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("convert", "quantize", "verify")
DOORS = {
    "torch": ("quantize/activations/", "quantize/calibrated.py", "verify/engines/"),
    "transformers": ("quantize/activations/", "quantize/calibrated.py", "verify/engines/"),
    "llama_cpp": ("verify/engines/",),  # quantize/ggml.py opens its library without importing it
    "llmcompressor": ("quantize/calibrated.py",),
    "compressed_tensors": ("quantize/calibrated.py", "verify/engines/"),
    "matplotlib": ("quantize/fit/plot.py", "quantize/abliteration/plots.py"),
}
"""Heavy packages and the only files that may import them."""
BEHIND_THE_DOOR = ("quantize/activations/", "verify/engines/")
"""Packages that import them at once, and are themselves imported late."""


def modules() -> dict[str, Path]:
    """Our modules by dotted name."""
    found = {"hermes_quant": ROOT / "hermes_quant.py"}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, *, top_level: bool) -> Iterator[str]:
    """Dotted names a module imports; at top level, those that run when it is imported."""
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    if top_level:
        for node in ast.walk(tree):
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if lazy or typing:
                skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_is_something_to_look_at() -> None:
    found = modules()
    assert {"hermes_quant", "convert", "convert.families.llama", "quantize.ggml"} <= found.keys()
    assert "convert.plan" in set(imports(found["convert.run"], top_level=True))
    assert "convert.terminal" not in set(imports(found["hermes_quant"], top_level=True))
    assert "convert.terminal" in set(imports(found["hermes_quant"], top_level=False))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "hermes_quant", "tests"}
    for name, path in modules().items():
        if name.split(".")[0] == room:
            used = {found.split(".")[0] for found in imports(path, top_level=False)}
            assert not used & forbidden, path


def test_there_is_no_import_cycle() -> None:
    found = modules()
    graph = {
        name: {used for used in imports(path, top_level=True) if used in found and used != name}
        for name, path in found.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for used in sorted(graph[name]):
                visit(used, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_heavy_packages_are_imported_behind_their_doors_only() -> None:
    for path in modules().values():
        place = path.relative_to(ROOT).as_posix()
        for used in imports(path, top_level=False):
            doors = DOORS.get(used.split(".")[0])
            if doors is not None:
                assert place.startswith(doors), f"{place} imports {used}"


def test_heavy_packages_are_imported_late() -> None:
    for path in modules().values():
        place = path.relative_to(ROOT).as_posix()
        if not place.startswith(BEHIND_THE_DOOR):
            used = set(imports(path, top_level=True))
            assert not {name.split(".")[0] for name in used} & DOORS.keys(), place
            assert not any(name.startswith("quantize.activations") for name in used), place


def test_quantizing_loads_neither_torch_nor_llama_cpp(tmp_path: Path, miniature: Path) -> None:
    targets = ["FP8_DYNAMIC", "Q4_K_M", "BF16"]
    code = (
        "import sys\nfrom pathlib import Path\nfrom quantize.job import quantize\n"
        f"quantize({str(miniature)!r}, Path({str(tmp_path)!r}), {targets!r})\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout.split()
    assert not {*DOORS, "safetensors", "gguf"} & {*done.stdout.split()}


def test_no_other_distribution_provides_our_names() -> None:
    providers = importlib.metadata.packages_distributions()
    for name in (*ROOMS, "hermes_quant"):
        assert set(providers.get(name, ["hermes-quant"])) == {"hermes-quant"}, name
    for name in (*ROOMS, "hermes_quant"):
        module = modules()[name]
        code = f"import {name}; print({name}.__file__)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
        )
        assert Path(done.stdout.strip()) == module


def repository_files() -> list[Path]:
    """Files that git tracks or would; all files where this is no git checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [p for room in (*ROOMS, "tests") for p in (ROOT / room).rglob("*.py")]
    return [ROOT / name.decode() for name in listed.split(b"\0") if name]


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    # written in pieces, so that this file does not find itself
    pattern = re.compile(rb"/(?:" + b"|".join((b"work", b"root", b"home", b"Users")) + rb")/[\w.-]")
    files = repository_files()
    assert ROOT / "pyproject.toml" in files
    for path in files:
        if path.is_file() and path.suffix not in (".safetensors", ".png"):
            found = pattern.search(path.read_bytes())
            assert found is None, f"{path}: {found[0]!r}"


def test_the_packages_that_are_shipped_are_the_packages_there_are() -> None:
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {n for n, path in modules().items() if path.name == "__init__.py"}
    assert set(settings["packages"]) == there


def test_a_warning_from_our_own_modules_is_an_error() -> None:
    for name in ("convert.run", "quantize", "hermes_quant"):
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn_explicit("ours", UserWarning, "file.py", 1, module=name)
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "file.py", 1, module="converter.run")
