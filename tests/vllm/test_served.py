"""Every scheme we make, in a real vLLM server on this processor: same calls, or the known refusal.

`SCHEMES` is the answer to "what can vLLM's CPU backend run?", measured with the versions of
constraints-vllm.txt; docs/vllm.md is the same table for people. A scheme that needs an instruction
set must be refused where the processor lacks it, with the words it was refused with when measured,
and served where the processor has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from convert import checkpoint_copy
from convert.model import FLOAT_FILE_TYPES
from quantize.compressed_table import CALIBRATED, ONESHOT
from quantize.gguf_targets import Options
from quantize.job import planners, quantize
from quantize.mixture_table import MIXTURES
from tests.vllm.conftest import ROOT
from tests.vllm.server import NAME, NotServedError, serve
from verify.check import State
from verify.report.contents import ArtifactReport
from verify.verify import verify

NANO = ROOT / "examples/hermes-nano"
BUNDLED = ROOT / "quantize/calibration_data/conversations.jsonl"
CALIBRATION_LINES = 12
PROMPTS = 200
NEVER = "no x86-64 processor"


@dataclass(frozen=True)
class Scheme:
    """What vLLM logs when it takes the scheme; what it needs, and says where that is missing."""

    taken: str = ""
    needs: str = ""
    refusal: str = ""


SCHEMES = {
    "BF16": Scheme(),
    "FP8_DYNAMIC": Scheme(taken=r"Selected \w+ for CompressedTensorsW8A8Fp8"),
    "FP8_BLOCK": Scheme(
        taken=r"Selected \w+ for CompressedTensorsW8A8Fp8",
        needs="amx_tile",
        refusal="CPUFp8BlockScaledMMKernel requires AMX tile support",
    ),
    "FP8_TENSOR": Scheme(
        needs=NEVER,
        refusal="static_scaled_fp8_quant() expected at most 0 argument(s) but received 4",
    ),
    "FP8": Scheme(
        needs=NEVER,
        refusal="static_scaled_fp8_quant() expected at most 0 argument(s) but received 4",
    ),
    "W8A8": Scheme(taken=r"Selected \w+ for CompressedTensorsW8A8Int8"),
    "W4A16": Scheme(
        taken="Using CPUWNA16LinearKernel",
        needs="avx512f",
        refusal="object has no attribute 'cpu_gemm_wna16'",
    ),
    "W4A16_GPTQ": Scheme(
        taken="Using CPUWNA16LinearKernel",
        needs="avx512f",
        refusal="object has no attribute 'cpu_gemm_wna16'",
    ),
    "W4A16_AWQ": Scheme(
        taken="Using CPUWNA16LinearKernel",
        needs="avx512f",
        refusal="object has no attribute 'cpu_gemm_wna16'",
    ),
    "NVFP4": Scheme(
        needs=NEVER, refusal="Failed to find a kernel that can implement the NVFP4 linear layer"
    ),
    "W8A16": Scheme(
        needs=NEVER, refusal="Failed to find a kernel that can implement the WNA16 linear layer"
    ),
    "NVFP4A16": Scheme(needs=NEVER, refusal="Marlin FP4 not available"),
    "MXFP4A16": Scheme(
        needs=NEVER, refusal="Failed to find a kernel that can implement the MXFP4 linear layer"
    ),
    "MXFP4": Scheme(
        needs=NEVER, refusal="Failed to find a kernel that can implement the MXFP4 linear layer"
    ),
}
"""Targets of `hermes-quant quantize` that are folders; BF16 is the checkpoint itself."""


def folder_targets() -> set[str]:
    """Targets that are folders for vLLM, by the tool's own list."""
    others = {*MIXTURES, *FLOAT_FILE_TYPES, checkpoint_copy.TARGET}
    return (planners(Options()).keys() - others) | CALIBRATED.keys() | ONESHOT.keys()


def processor_has(flag: str) -> bool:
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found is not None and flag in found[1].split()


def test_every_scheme_we_make_has_a_row() -> None:
    assert "FP8_DYNAMIC" in folder_targets()
    assert folder_targets() <= SCHEMES.keys()


@pytest.mark.vllm
@pytest.mark.parametrize("target", SCHEMES)
def test_a_real_server_finds_the_calls_of_the_reference(target: str, tmp_path: Path) -> None:
    scheme = SCHEMES[target]
    log = tmp_path / "server.log"
    folder = make(target, tmp_path)
    try:
        report = ask_server(folder, log)
        if not scheme.needs or processor_has(scheme.needs):
            check_calls(report)
            assert re.search(scheme.taken, log.read_text(errors="replace"))
            return
        assert report is None or report.engine is None, "it answered"
        assert scheme.refusal in log.read_text(errors="replace")
    except BaseException:
        print(log.read_text(errors="replace") if log.exists() else "the server wrote no log")
        raise


def make(target: str, out: Path) -> Path:
    """A folder to serve, made by the tool."""
    if target == "BF16":
        return NANO
    if target not in folder_targets():
        pytest.skip(f"hermes-quant does not make {target}")
    text = None
    if target in {*CALIBRATED, *ONESHOT}:
        text = out / "text.jsonl"
        lines = BUNDLED.read_text().splitlines(keepends=True)
        text.write_text("".join(lines[:CALIBRATION_LINES]))
    quantize(str(NANO), out, [target], name="nano", calibration=text)
    return out / f"nano-{target}"


def ask_server(folder: Path, log: Path) -> ArtifactReport | None:
    """Verify what a real server makes of the folder; None if it does not start."""
    try:
        with serve(folder, log) as address:
            return verify(NANO, [f"{address}#{NAME}"], limit=PROMPTS).artifacts[0]
    except NotServedError:
        return None


def check_calls(report: ArtifactReport | None) -> None:
    """Token for token, and through the server's own template and parser."""
    assert report is not None, "the server did not start"
    by_name = {outcome.check: outcome for outcome in report.outcomes}
    for name in ("agreement", "served_calls"):
        verdict = by_name[name].verdict
        print(f"{name}: {verdict.reason}")
        assert verdict.state is State.PASS, f"{name}: {verdict.reason}"
    for name in ("chat_kl", "reply_kl"):
        verdict = by_name[name].verdict
        print(f"{name}: {verdict.reason}")
        assert isinstance(verdict.numbers["kl"], float), f"{name}: {verdict.reason}"
        assert verdict.state is not State.FAIL, f"{name}: {verdict.reason}"
    numbers = by_name["served_calls"].verdict.numbers
    assert numbers["same_prompt_tokens"] == numbers["with_tools"]
