"""The files around the weights: who may read them, what should not be there, the tokenizer.

safetensors 0.8 creates files that only their owner can read, whatever the umask; a tool that then
uploads or serves them as another user fails. llmcompressor's data-free path copies pickled weights
along. Calibration under transformers 4.51 or later saved its truncation into tokenizer.json, and
published checkpoints carry it: prompts are cut and nothing says so.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from convert.errors import CheckpointError
from convert.model_spec import read_json_object
from convert.shard_index import PICKLE_SUFFIXES
from verify.lint.finding import LintFinding
from verify.lint.lints import finding
from verify.stored_checkpoint import StoredCheckpoint

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json")


def lint_files(stored: StoredCheckpoint) -> Iterator[LintFinding]:
    """Modes, strays and the tokenizer."""
    for path in sorted(stored.path.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            mode = stat.S_IMODE(path.stat().st_mode)
            if not mode & stat.S_IROTH:
                yield finding("file-mode", path.name, f"mode {mode:04o}", "readable by all: 0644")
    for path in sorted(stored.path.rglob("*")):
        name = path.relative_to(stored.path)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix in PICKLE_SUFFIXES and path.is_file() and not hidden:
            size = f"{path.stat().st_size:,} bytes of pickle"
            yield finding("file-stray", name.as_posix(), size, "safetensors only")
    yield from _lint_tokenizer(stored.path)


def _lint_tokenizer(folder: Path) -> Iterator[LintFinding]:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield finding("tokenizer-missing", "tokenizer.json", "nothing", "the source's tokenizer")
    if not (folder / "tokenizer.json").is_file():
        return
    try:
        tokenizer = read_json_object(folder / "tokenizer.json")
    except CheckpointError as error:
        found = str(error).removeprefix(f"{folder / 'tokenizer.json'}: ")
        yield finding("tokenizer-missing", "tokenizer.json", found, "the source's tokenizer")
        return
    for key in ("truncation", "padding"):
        value = tokenizer.get(key)
        if value is None:
            continue
        length = value.get("max_length") if isinstance(value, dict) else None
        found = f"max_length {length}" if length is not None else "present"
        yield finding(f"tokenizer-{key}", f"tokenizer.json: {key}", found, "null")
