"""The recipes of the published Hermes releases: what they would make of the real shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.errors import InputError
from tests.command import invoke
from tests.quantize.fit.shapes import write_config
from verify.release.predict import predict
from verify.release.recipe import read_recipe

EXAMPLES = Path(__file__).parents[3] / "examples"
SHAPES = {
    "hermes-3-405b-fp8": ("405B", "Llama"),
    "hermes-3-3b-gguf": ("3B", "Llama"),
    "hermes-2-pro-8b-gguf": ("Hermes 2 Pro 8B", "Llama 3"),
    "hermes-2-theta-70b-gguf": ("Theta 70B", "Llama 3"),
    "hermes-3-8b": ("8B", "Llama"),
}
GB = 1e9
# what the hub shows of the published files, or what others made of the same shapes, in GB
PUBLISHED = {
    ("hermes-3-405b-fp8", "FP8_DYNAMIC"): 410.1,
    ("hermes-3-3b-gguf", "Q4_K_M"): 2.02,
    ("hermes-3-3b-gguf", "Q8_0"): 3.42,
    ("hermes-3-3b-gguf", "abliterated-Q4_K_M"): 2.02,
    ("hermes-2-pro-8b-gguf", "Q4_K_M"): 4.92,
    ("hermes-2-pro-8b-gguf", "Q8_0"): 8.54,
    ("hermes-2-theta-70b-gguf", "Q4_K_M"): 42.5,
    ("hermes-3-8b", "Q6_K"): 6.60,
    ("hermes-3-8b", "BF16"): 16.1,
}


def test_every_published_release_has_a_recipe() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_a_dry_run_against_the_real_shape(tmp_path: Path, name: str) -> None:
    shape, beginning = SHAPES[name]
    write_config(tmp_path, shape)
    found = predict(EXAMPLES / f"{name}.yaml", source=str(tmp_path), threads=2)
    read = read_recipe(EXAMPLES / f"{name}.yaml")
    assert [output.target for output in found.outputs] == [one.target for one in read.wanted()]
    for output in found.outputs:
        published = PUBLISHED.get((name, output.target))
        if published:
            assert output.size_bytes / GB == pytest.approx(published, rel=0.01), output
    assert found.disk_bytes >= found.write_bytes == sum(o.size_bytes for o in found.outputs)
    reads = 2 if read.recipe.abliteration else 1
    assert found.read_bytes == pytest.approx(reads * 2 * found.parameters, rel=0.01)
    assert found.make_memory_bytes <= 1 << 30
    assert found.verify_memory_bytes > 4 * found.parameters
    assert 0 < found.seconds < 1e5
    unmet = {duty.duty for duty in found.duties.duties if not duty.met}
    texts = {"copy of the licence", "text LICENSE", "text USE_POLICY.md"}
    assert unmet == texts  # Meta's texts are not ours to ship
    named = next(d for d in found.duties.duties if d.duty == f"name begins with {beginning!r}")
    assert "keeps the published name of its base model" in named.how


def test_the_command_prints_it(tmp_path: Path) -> None:
    write_config(tmp_path, "8B")
    recipe = EXAMPLES / "hermes-3-8b.yaml"
    options = ("--out", tmp_path / "none", "--dry-run", "--source", tmp_path)
    done = invoke("release", "build", recipe, *options)
    assert done.exit_code == 0, done.output
    assert "Hermes-3-Llama-3.1-8B-Q4_K_M.gguf" in done.stdout
    assert "NOT MET: the file that the recipe names is gone" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_dry_run_without_any_headers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json to plan from"):
        predict(EXAMPLES / "hermes-3-8b.yaml", source=str(tmp_path))
