from typing import Any

from numpy.typing import NDArray

BUILDS: tuple[str, ...]
TYPES: tuple[str, ...]
SIZES: tuple[tuple[int, int], ...]

def quantize(
    build: str,
    dtype: str,
    rows: NDArray[Any],
    columns: int,
    name: str,
    importance: NDArray[Any] | None,
    blocks: NDArray[Any],
    /,
) -> None: ...
def absmax(
    build: str, dtype: str, rows: NDArray[Any], columns: int, out: NDArray[Any], /
) -> None: ...
def codes(
    build: str,
    dtype: str,
    rows: NDArray[Any],
    columns: int,
    rounded: str,
    code: str,
    scales: NDArray[Any],
    out: NDArray[Any],
    /,
) -> None: ...
