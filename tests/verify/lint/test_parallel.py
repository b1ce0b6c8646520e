"""On how many GPUs: the published sizes, worked out by hand for blocks of 128 x 128."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.model_spec import read_model_spec
from tests.miniature import Shape, config
from tests.verify.lint.checkpoints import change_json
from tests.verify.lint.conftest import MakeClean
from verify.lint.lint import lint
from verify.lint.parallel import plan_sizes
from verify.quantization import read_quantization

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("shape", "strategy", "works"),
    [
        (Shape(4096, 14336, 32, 32, 8), "block", [1, 2, 4, 8, 16]),  # Hermes 3 8B
        (Shape(8192, 28672, 80, 64, 8), "block", [1, 2, 4, 8, 16]),  # 70B
        (Shape(16384, 53248, 126, 128, 8), "block", [1, 2, 4, 8, 16]),  # 405B
        (Shape(3072, 8192, 28, 24, 8), "block", [1, 2, 4, 8]),  # 3B: 24 heads
        (Shape(4096, 11008, 32, 32, 32), "block", [1, 2]),  # Llama 2 7B: 11008 / 4 = 21.5 blocks
        (Shape(4096, 11008, 32, 32, 32), "channel", [1, 2, 4, 8, 16]),
        (Shape(4096, 14336, 32, 32, 8), "group", [1, 2, 4, 8, 16]),
        (Shape(4096, 11008, 32, 32, 32), "group", [1, 2]),
    ],
)
def test_published_shapes(tmp_path: Path, shape: Shape, strategy: str, works: list[int]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(shape, tied=False)))
    weights = {"strategy": strategy, "group_size": 128, "num_bits": 8}
    groups = {"g": {"targets": ["Linear"], "weights": weights}}
    stated = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    quantization = read_quantization({"quantization_config": {**stated, "config_groups": groups}})
    assert quantization is not None
    plan = plan_sizes(read_model_spec(path), dict.fromkeys(PROJECTIONS, quantization.groups[0]))
    assert [size for size, why in plan.sizes.items() if why is None] == works


def test_a_model_that_is_not_known_has_no_sizes_and_no_guesses(copy: MakeClean) -> None:
    folder = copy("FP8_DYNAMIC")
    changes = {"architectures": ["X"], "num_attention_heads": 0}
    change_json(folder / "config.json", lambda config: config.update(changes))
    report = lint(folder)
    assert report.tensor_parallel == {}
    assert [finding.name for finding in report.findings] == ["model-not-understood"]
