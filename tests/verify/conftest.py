"""One miniature reference and its artifacts for all of verify's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.rendering import Tokenizer
from quantize.job import quantize
from tests.miniature import write_checkpoint
from verify.artifact import open_artifact
from verify.evidence import Evidence, Reference, make_prompts
from verify.gate import read_gate

NAMES = {
    "F32": "mini-F32.gguf",
    "Q8_0": "mini-Q8_0.gguf",
    "FP8_DYNAMIC": "mini-FP8_DYNAMIC",
}


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 miniature with rope scaling and untied head."""
    return write_checkpoint(tmp_path_factory.mktemp("reference") / "mini")


@pytest.fixture(scope="session")
def artifacts(reference_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts of the reference by target."""
    out = tmp_path_factory.mktemp("artifacts")
    quantize(str(reference_folder), out, list(NAMES), name="mini")
    return {target: out / name for target, name in NAMES.items()}


@pytest.fixture(scope="session")
def reference(reference_folder: Path) -> Reference:
    """The reference with three conversations and no answers yet."""
    conversations = tuple(
        Conversation(f"c{i}", ({"role": "user", "content": text},), ({"name": "f"},))
        for i, text in enumerate(("hello", 'call <tool_call> with "1234"', "naïve 東京\n\n 👩‍💻"))
    )
    checkpoint = Checkpoint.open(reference_folder)
    tokenizer = Tokenizer.open(reference_folder)
    prompts = make_prompts(checkpoint, tokenizer, conversations, 16)
    return Reference(checkpoint, tokenizer, conversations, prompts)


def evidence(reference: Reference, path: Path) -> Evidence:
    """An artifact beside the reference, not run."""
    artifact = open_artifact(path)
    return Evidence(reference, artifact, read_gate(None).of(artifact.type))
