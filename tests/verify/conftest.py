"""One miniature reference and hermes-nano, and their artifacts, for all of verify's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.checkpoint import Checkpoint
from convert.conversation import Conversation
from convert.rendering import Tokenizer
from quantize.calibrate import calibrate
from quantize.job import quantize
from tests.miniature import write_checkpoint
from verify.artifact import open_artifact
from verify.engines.opening import open_engine
from verify.evidence import Evidence, Reference, make_prompts
from verify.gate import read_gate
from verify.reference_run import run_reference
from verify.suite import read_suite

NANO = Path(__file__).parents[2] / "examples/hermes-nano"
PROMPTS = 64
TARGETS = ("F32", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q2_K", "FP8_DYNAMIC")
NAMES = {
    "F32": "mini-F32.gguf",
    "Q8_0": "mini-Q8_0.gguf",
    "FP8_DYNAMIC": "mini-FP8_DYNAMIC",
    "W8A8": "mini-W8A8",
    "W4A16": "mini-W4A16",
    "NVFP4A16": "mini-NVFP4A16",
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


@pytest.fixture(scope="session")
def nano() -> Reference:
    """hermes-nano, answered and scored."""
    checkpoint, tokenizer = Checkpoint.open(NANO), Tokenizer.open(NANO)
    conversations = read_suite(None, NANO, PROMPTS).conversations
    prompts = make_prompts(checkpoint, tokenizer, conversations, 96)
    base = Reference(checkpoint, tokenizer, conversations, prompts)
    source = open_artifact(NANO)
    return run_reference(lambda: open_engine(source), base, max_new_tokens=96)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Undamaged artifacts of hermes-nano."""
    out = tmp_path_factory.mktemp("nano")
    quantize(str(NANO), out, list(TARGETS), name="n")
    return {t: out / ("n-FP8_DYNAMIC" if t == "FP8_DYNAMIC" else f"n-{t}.gguf") for t in TARGETS}


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hermes-nano in FP8 with fixed scales for activations and the KV cache."""
    out = tmp_path_factory.mktemp("calibrated")
    folder = calibrate(str(NANO), out / "cal").folder
    quantize(str(NANO), out, ["FP8"], calibration=folder, kv_cache=True, name="n")
    return out / "n-FP8"


def evidence(reference: Reference, path: Path) -> Evidence:
    """An artifact beside the reference, not run."""
    artifact = open_artifact(path)
    return Evidence(reference, artifact, read_gate(None).of(artifact.type))
