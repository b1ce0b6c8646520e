"""docs/formats.md: every target is on it, with the size that the plan pass gives."""

from __future__ import annotations

import re
from pathlib import Path

from convert.model_spec import read_model_spec
from quantize.compressed_table import CALIBRATED, ONESHOT
from quantize.fit.makeable import NEEDS_IMATRIX, headers_from_config
from quantize.gguf_targets import Options
from quantize.job import planners
from tests.quantize.fit.shapes import config, subject, write_config

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.read_text().splitlines()
    if re.match(r"\| `\w+` \|", line)
    for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
}


def test_every_target_has_a_row_and_every_row_is_a_target() -> None:
    assert ROWS.keys() | {"SAFETENSORS"} == planners(Options()).keys()


def test_sizes_and_what_needs_an_imatrix_are_what_the_plan_says(tmp_path: Path) -> None:
    spec = read_model_spec(write_config(tmp_path, "8B"))
    parameters = sum(
        tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 2 else 1)
        for tensor in headers_from_config(spec, config("8B")).values()
    )
    planned = {c.target: c for c in subject("8B").candidates if c.target in ROWS}
    assert ROWS.keys() - planned.keys() == {
        *CALIBRATED,
        *ONESHOT,
    }  # planned with a calibration only
    for target, candidate in planned.items():
        cells = ROWS[target]
        if candidate.container == "gguf":
            bits = 8 * candidate.size_bytes / parameters
            assert cells[:2] == [f"{candidate.size_bytes / 1e9:.2f}", f"{bits:.2f}"], target
            assert (cells[2] == "needs") == (NEEDS_IMATRIX in candidate.notes), target
        else:
            assert cells[-1] == f"{candidate.size_bytes / 1e9:.2f}", target
