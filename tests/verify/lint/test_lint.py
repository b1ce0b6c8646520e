"""The verb lint from outside: exit codes, JSON, print, documentation, and input that is hostile."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from convert.errors import CheckpointError
from tests.command import invoke
from tests.verify.lint.checkpoints import (
    CONFIG,
    INDEX,
    change_json,
    change_quantization,
    change_tensors,
    group,
    linears,
)
from tests.verify.lint.conftest import MakeClean
from tests.verify.lint.edits import drop, ignore, with_row
from verify import stored_checkpoint
from verify.lint.finding import Severity
from verify.lint.lint import lint
from verify.lint.lints import LINTS
from verify.lint.print_lint import print_lint

ROOT = Path(__file__).parents[3]


def test_exit_codes(clean: MakeClean, copy: MakeClean, tmp_path: Path) -> None:
    assert invoke("lint", clean("FP8_DYNAMIC")).exit_code == 0
    assert invoke("lint", clean("FP8_BLOCK")).exit_code == 0, "a warning is no error"
    broken = copy("FP8_DYNAMIC")
    drop("model.norm.weight")(broken)
    assert invoke("lint", broken).exit_code == 1
    for path in (tmp_path / "nothing", tmp_path, broken / CONFIG):
        refused = invoke("lint", path)
        assert refused.exit_code == 2, path
        assert re.fullmatch(r"error: [^\n]+\n", refused.stderr)


def test_json_holds_every_finding(copy: MakeClean) -> None:
    folder = copy("FP8_BLOCK")
    change_tensors(folder, lambda t: [t.pop(f"{m}.weight_scale") for m in linears(t)])
    done = invoke("lint", folder, "--json")
    data = json.loads(done.stdout)
    assert (done.exit_code, data["schema_version"], data["errors"]) == (1, 1, 14)
    assert data["warnings"] == 1
    finding = next(f for f in data["findings"] if f["name"] == "scale-missing")
    assert finding.keys() == {"name", "severity", "subject", "found", "expected", "remedy"}
    assert (finding["severity"], finding["found"]) == ("error", "nothing")
    assert data["tensor_parallel"]["1"] is None
    assert "no multiple of 128" in data["tensor_parallel"]["2"]
    assert str(folder.parent) not in done.stdout


def test_what_is_printed(copy: MakeClean) -> None:
    folder = copy("FP8_BLOCK")
    change_tensors(folder, lambda t: [t.pop(f"{m}.weight_scale") for m in linears(t)])
    console = Console(width=100, file=io.StringIO())
    print_lint(lint(folder), console)
    shown = console.file.getvalue()
    assert "scale-missing (14)" in shown
    assert "and 11 more, all in --json" in shown
    assert LINTS["scale-missing"].remedy in shown
    assert "14 errors, 1 warning." in shown
    assert shown.index("scale-missing") < shown.index("tensor-parallel-limited"), "worst first"
    assert max(map(len, shown.splitlines())) <= 100


def test_the_documentation_lists_every_lint() -> None:
    text = (ROOT / "docs" / "lint.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \|", text, re.MULTILINE))
    assert rows == {name: found.severity.value for name, found in LINTS.items()}


def test_names_are_kebab_case_and_ordered_by_nothing_but_the_table() -> None:
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", name) for name in LINTS)
    assert {found.severity for found in LINTS.values()} == set(Severity)


def test_it_needs_no_torch(clean: MakeClean) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom verify.lint.lint import lint\n"
        "from verify.diff import diff\n"
        f"path = Path({str(clean('FP8_DYNAMIC'))!r})\nlint(path); diff(path, path)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "llama_cpp", "compressed_tensors", "safetensors", "vllm"}
    assert not heavy & {*done.stdout.split()}


def test_small_runs_find_the_same_row(copy: MakeClean, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("FP8_DYNAMIC")
    change_tensors(
        folder,
        lambda t: t.update({"lm_head.weight": with_row(211, float("nan"))(t["lm_head.weight"])}),
    )
    whole = lint(folder)
    assert "256 values, the first at row 211, column 0" in whole.findings[0].found
    for chunk_bytes in (62, 700, 1 << 13):
        defaults = (chunk_bytes,)
        monkeypatch.setattr(stored_checkpoint.chunks, "__defaults__", defaults)
        assert lint(folder) == whole


@pytest.mark.parametrize(
    "quantization",
    [
        "fp8", 5, [], {}, {"quant_method": None}, {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"g": None}},
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {}}}},
        {"quant_method": "fp8", "weight_block_size": "x", "ignored_layers": 3},
        {"quant_method": "fp8", "weight_block_size": [0, -1]},
    ],
)  # fmt: skip
def test_a_config_that_makes_no_sense_is_a_finding(copy: MakeClean, quantization: object) -> None:
    folder = copy("FP8_DYNAMIC")
    change_json(folder / CONFIG, lambda config: config.update(quantization_config=quantization))
    assert lint(folder).findings


@pytest.mark.parametrize(
    "change",
    [
        {"num_bits": 0}, {"num_bits": "8"}, {"group_size": 0, "strategy": "group"},
        {"strategy": None}, {"block_structure": [0, 0], "strategy": "block"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["W4A16", "FP8_BLOCK"])
def test_arguments_that_make_no_sense_do_not_crash(
    copy: MakeClean, scheme: str, change: dict[str, object]
) -> None:
    folder = copy(scheme)
    change_quantization(folder, lambda q: group(q)["weights"].update(change))
    lint(folder)


def test_hostile_names_and_odd_shapes(copy: MakeClean) -> None:
    folder = copy("FP8_DYNAMIC")
    odd = {
        "": torch.ones(3),
        "weight": torch.ones(2, 2),
        "a..weight_scale": torch.ones(0),
        "model.layers.0.self_attn.q_proj.weight_scale": torch.ones(()),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(2, 3, 4).to(torch.float8_e4m3fn),
        "model.layers.99.mlp.up_proj.weight_packed": torch.zeros(4, dtype=torch.int32),
        "[red]x\x1b[31m.weight": torch.ones(1),
    }
    change_tensors(folder, lambda tensors: tensors.update(odd))
    found = lint(folder)
    assert {"tensor-unknown", "scale-shape", "tensor-shape"} <= {f.name for f in found.findings}
    console = Console(width=100, file=io.StringIO())
    print_lint(found, console)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert "[red]x\\x1b[31m.weight" in shown


def test_an_index_that_points_outside_is_not_followed(copy: MakeClean, tmp_path: Path) -> None:
    folder = copy("FP8_DYNAMIC")
    save_file({"x": torch.ones(1)}, tmp_path / "outside.safetensors")
    change_json(folder / INDEX, lambda i: i["weight_map"].update(x="../outside.safetensors"))
    report = lint(folder)
    assert [f.subject for f in report.findings] == ["../outside.safetensors"]
    assert report.findings[0].name == "shard-missing"


def test_a_file_that_is_cut_while_it_is_read(clean: MakeClean) -> None:
    stored = stored_checkpoint.open_stored(clean("FP8_DYNAMIC"))
    info = stored.tensors["lm_head.weight"]
    beyond = int(np.prod(info.shape)) + 10**7
    with pytest.raises(CheckpointError, match="it was cut"):
        stored_checkpoint.read_items(stored.path, info, 0, beyond)


def test_ignored_by_expression_and_by_name(copy: MakeClean) -> None:
    folder = copy("FP8_DYNAMIC")
    ignore("re:.*down_proj")(folder)
    assert {f.name for f in lint(folder).findings} == {"module-not-in-config", "size-off"}
    ignore("re:(")(folder)  # an expression that is none matches nothing
    assert {f.name for f in lint(folder).findings} == {"module-not-in-config", "size-off"}
