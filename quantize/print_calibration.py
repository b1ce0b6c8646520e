"""Print what a calibration is: its text, its model, its files."""

from __future__ import annotations

from convert.terminal import console, print_json, printable
from quantize.calibration import ACTIVATIONS, IMATRIX, TOKENS, Calibration


def print_calibration(calibration: Calibration, *, as_json: bool) -> None:
    """One line of what was run and one for each file, or the record as JSON."""
    if as_json:
        print_json({"folder": str(calibration.folder), **calibration.record})
        return
    stdout, data = console(), calibration.record["data"]
    stdout.print(
        f"{printable(data['name'])}: {data['conversations']} conversations, {data['tokens']:,}"
        f" tokens in {data['chunks']} chunks of {data['chunk_tokens']}"
    )
    stdout.print(f"{calibration.folder / IMATRIX}: {len(calibration.inputs)} matrices")
    stdout.print(f"{calibration.folder / ACTIVATIONS}: {len(calibration.keys)} layers")
    stdout.print(f"{calibration.folder / TOKENS}: the text, as ids")
