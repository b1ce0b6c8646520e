"""What a job leaves in its output folder: the names, and whether all of it is whole."""

from __future__ import annotations

from pathlib import Path

from convert.staging import SIDECAR_NAME, STAGING_NAME, hash_file, read_sidecar, sidecar_path

TARGETS = ["FP8_DYNAMIC", "Q8_0", "BF16"]
NAMES = {
    "m-FP8_DYNAMIC",
    "m-Q8_0.gguf",
    f"m-Q8_0.gguf.{SIDECAR_NAME}",
    "m-BF16.gguf",
    f"m-BF16.gguf.{SIDECAR_NAME}",
}


def listing(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and size of every file."""
    return {
        str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_size)
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


def assert_complete(out: Path, *, described: bool = True) -> None:
    """Every artifact with a final name is whole and described by its sidecar, or by none."""
    for path in out.iterdir():
        if path.name.endswith(SIDECAR_NAME) or path.name == STAGING_NAME:
            continue
        sidecar = read_sidecar(sidecar_path(out, path.name, is_folder=path.is_dir()))
        if sidecar is None and not described:
            continue
        assert sidecar is not None, path
        assert sidecar.name == path.name
        for file in sidecar.files:
            assert (out / file.path).stat().st_size == file.size_bytes
            assert hash_file(out / file.path) == file.sha256, file.path
        if path.is_dir():
            found = {str(p.relative_to(out)) for p in path.rglob("*") if p.is_file()}
            assert found == {f.path for f in sidecar.files} | {f"{path.name}/{SIDECAR_NAME}"}
