"""Bad input is refused in words; what models can be given as."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.errors import InputError, UnsupportedError
from quantize.fit.fit import fit
from quantize.fit.memory import Verdict
from quantize.fit.subject import read_subject
from quantize.job import quantize
from tests.miniature import change_json
from tests.quantize.fit.shapes import write_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "RTX 4099"}, "nearest names are RTX 4090"),
        ({"gpu": "H100"}, "could be any of: H100 PCIe 80GB, H100 SXM5 80GB, H100 NVL 94GB"),
        ({"gpu": "0xRTX 4090"}, "0 devices"),
        ({"gpu": ""}, "is not known"),
        ({"gpu": "RTX 4090", "context": "256k"}, "the model was made for 131,072 tokens"),
        ({"gpu": "RTX 4090", "context": "-5"}, "is not a number of tokens"),
        ({"gpu": "RTX 4090", "context": "many"}, "is not a number of tokens"),
        ({"gpu": "RTX 4090", "context": "0"}, "is not a number of tokens"),
        ({"gpu": "RTX 4090", "concurrency": 0}, "expected a number of requests"),
        ({"gpu": "RTX 4090", "concurrency": -3}, "expected a number of requests"),
        ({"gpu_memory": "24"}, "is not a size"),
        ({"gpu_memory": "-3GiB"}, "is not a size"),
        ({"gpu_memory": "1kB"}, "expected the memory of a device"),
        ({"max_memory": "lots"}, "is not a size"),
        ({"gpu": "RTX 4090", "engine": "ollama"}, "one of vllm, llama.cpp, both"),
        ({"gpu": "3xH100 SXM5 80GB", "engine": "vllm"}, "32 attention heads do not divide by 3"),
        ({"gpu": "RTX 4090", "targets": ["Q4_KM"]}, "unknown target 'Q4_KM'"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write_config(tmp_path, "8B")
    with pytest.raises(InputError, match=message):
        fit(str(path), **options)  # type: ignore[arg-type]


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "x.bin").write_bytes(b"")
    for name, message in (
        ("empty", "holds no config.json"),
        ("x.json", "neither a config.json"),
        ("x.bin", "expected a checkpoint folder"),
    ):
        with pytest.raises(InputError, match=message):
            fit(str(tmp_path / name), gpu="RTX 4090")
    path = write_config(tmp_path / "q", "8B", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedError, match="describes a quantized model"):
        fit(str(path), gpu="RTX 4090")
    path = write_config(tmp_path / "u", "8B", architectures=["GemmaForCausalLM"])
    with pytest.raises(UnsupportedError, match="GemmaForCausalLM"):
        fit(str(path), gpu="RTX 4090")


def test_weights_of_an_unknown_architecture_are_still_counted(
    tmp_path: Path, miniature: Path
) -> None:
    for file in miniature.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_json(tmp_path / "config.json", architectures=["GemmaForCausalLM"])
    report = fit(str(tmp_path), gpu="RTX 4090", context="1k")
    (made,) = report.answers
    assert made.verdict is Verdict.UNKNOWN
    assert made.devices[0].term("weights").value


def test_a_part_of_a_split_file_stands_for_all(tmp_path: Path, miniature: Path) -> None:
    whole = quantize(str(miniature), tmp_path / "a", ["Q8_0"])
    quantize(str(miniature), tmp_path / "b", ["Q8_0"], max_file_bytes=400_000)
    (folder,) = (p for p in (tmp_path / "b").iterdir() if p.is_dir())
    parts = sorted(folder.glob("*.gguf"))
    assert len(parts) > 1
    (joined,) = read_subject(str(parts[-1])).candidates
    (single,) = read_subject(str(tmp_path / "a" / whole.plan.artifacts[0].name)).candidates
    assert joined.weight_bytes == single.weight_bytes
    assert joined.place == str(parts[0])
    parts[0].unlink()
    with pytest.raises(InputError, match="missing"):
        read_subject(str(parts[-1]))


def test_a_release_is_read_from_its_manifest(tmp_path: Path, miniature: Path) -> None:
    job = quantize(str(miniature), tmp_path, ["Q8_0", "Q4_K_M", "FP8_DYNAMIC"])
    names = [planned.name for planned in job.plan.artifacts]
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"name": "R", "artifacts": [{"name": n} for n in names]}))
    for reference in (manifest, tmp_path):
        report = fit(str(reference), gpu="RTX 4090", context="1k")
        assert {a.candidate.target for a in report.answers} == {"Q8_0", "Q4_K", "FP8_DYNAMIC"}
        assert all(a.make is None for a in report.answers)
        assert str(tmp_path) in str(report.answers[0].command)
    manifest.write_text(json.dumps({"artifacts": [{"name": "../x.gguf"}]}))
    with pytest.raises(InputError, match="does not lie beside it"):
        fit(str(manifest), gpu="RTX 4090")
    manifest.write_text(json.dumps({"artifacts": []}))
    with pytest.raises(InputError, match="not a list of objects with a name"):
        fit(str(manifest), gpu="RTX 4090")
