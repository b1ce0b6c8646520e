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
def e4m3(
    build: str,
    dtype: str,
    rows: NDArray[Any],
    columns: int,
    scales: NDArray[Any],
    codes: NDArray[Any],
    /,
) -> None: ...
