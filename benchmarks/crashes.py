"""Kill a run at every call that it makes to the file system, and at random moments; rerun, compare.

    python -m benchmarks.crashes [--moments N] [--work DIR]

The long form of `tests/faults.py`, which says what is done and prints the result: a run into an
empty folder and one over old outputs with `--force`, killed in place of every single call, then at
50 random moments each. Exits with 1 if any rerun made other bytes than an undisturbed run or any
file under a final name was not whole. Takes about a second a call, 900 of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.miniature import Shape, write_checkpoint


def main() -> None:
    """Make a miniature for `tests.faults`, which forks and must have no other threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        source = write_checkpoint(Path(folder) / "source", shape=Shape(layers=1))
        words = [str(source), f"{folder}/work", "--every", "--moments", str(options.moments)]
        done = subprocess.run([sys.executable, "-m", "tests.faults", *words], check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
