"""Recipes: every mistake with its line, and a schema that says the same as the reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from convert.errors import InputError
from tests.command import invoke
from verify.release.make import _groups
from verify.release.recipe import json_schema, read_recipe

ROOT = Path(__file__).parents[3]
HEAD = "source: acme/Mini\nname: Mini\n"
EDIT = """\
artifacts: [Q8_0]
abliteration:
  edit: edit
  refused: r.jsonl
  harmless: h.jsonl
  artifacts: {}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "release.yaml"
    path.write_text(HEAD + text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("artefacts: [Q8_0]", ":3: artefacts: unknown key; did you mean 'artifacts'?"),
        ("artifacts: [Q4_K_N]", ":3: artifacts.0.to: unknown type 'Q4_K_N'; did you mean 'Q4_K_"),
        ("artifacts:\n  - Q8_0\n  - {to: Q6_K, imatirx: x}", ":5: artifacts.1.imatirx: unknown"),
        ("artifacts: [Q8_0]\noptions: {numerics: ct-sm91}", ":4: options.numerics: unknown num"),
        ("artifacts:\n  - {to: Q8_0, abliterate: edit}", ":4: artifacts.0.abliterate: unknown"),
        ("artifacts: [Q8_0, Q8_0]", "Q8_0 is asked for twice"),
        ("artifacts: [{}]", "give exactly one of to, fit_bytes and bits_per_weight"),
        ("artifacts: [{to: Q8_0, fit_bytes: 5GB}]", "give exactly one of to"),
        ("artifacts: [{fit_bytes: 5}]", ":3: artifacts.0.fit_bytes:"),
        ("artifacts: [{fit_bytes: 5 apples}]", "'5 apples' is not a size"),
        ("artifacts: [FP8]", "FP8 needs a calibration; set options.calibration"),
        ("artifacts: [{to: NVFP4, numerics: ct-sm90}]", "NVFP4 needs a calibration"),
        (
            "artifacts: [NVFP4]\noptions: {calibration: cal, numerics: ct-sm90}",
            "numerics ct-sm90 is not for NVFP4, which llm-compressor computes; give it ct-eager",
        ),
        ("artifacts: []", ":3: artifacts:"),
        ("artifacts: [Q8_0]\nsigning: {method: pgp}", ":4: signing.method:"),
        ("artifacts: [Q8_0]\npublish: {repositories: two}", ":4: publish.repositories:"),
        ("artifacts: [Q8_0]\nbase_model: Mini", ":4: base_model:"),
        ("artifacts: [Q8_0]\nname: a/b", "name:"),
        (EDIT.format("[Q4_K_M]"), ":4: abliteration: Q4_K_M is not among the artifacts (Q8_0)"),
        (
            EDIT.replace("Q8_0", "Q8_0, NVFP4").format("[NVFP4]"),
            ":4: abliteration: NVFP4 reads the checkpoint itself",
        ),
        (EDIT.format("[Q8_0, Q8_0]"), ":8: abliteration.artifacts: expected at least one"),
        (EDIT.format("[Q8_0]\n  name: Mini"), ":4: abliteration: name: expected another one than"),
        (EDIT.format("[Q8_0]\n  limits: {kl: 0}"), ":9: abliteration.limits.kl:"),
        (EDIT.format("[Q8_0]\n  strength: 2"), ":9: abliteration.strength: unknown key"),
        ("artifacts: [Q8_0]\nname: ..", "name:"),
        ("artifacts: [Q8_0]\nname: .build", "name:"),
        ("artifacts: [Q8_0]\nname: quarantine", "where a build lays aside what did not pass"),
    ],
)
def test_every_mistake_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        read_recipe(write(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_revision_needs_a_hub(tmp_path: Path) -> None:
    path = write(tmp_path, "artifacts: [Q8_0]\nrevision: v2\n")
    assert read_recipe(path).reference == "acme/Mini@v2"
    (tmp_path / "acme" / "Mini").mkdir(parents=True)  # now the source is a folder beside it
    with pytest.raises(InputError, match="revision: acme/Mini is a folder"):
        read_recipe(path)


def test_artifacts_with_equal_options_share_a_read(tmp_path: Path) -> None:
    text = """\
options: {imatrix: all.gguf}
artifacts:
  - Q8_0
  - {to: Q6_K, leave_output: true}
  - Q4_K_M
  - {fit_bytes: 5GB}
  - {to: Q5_K_M, leave_output: true}
"""
    read = read_recipe(write(tmp_path, text))
    groups = [[one.target for one in group] for _, group in _groups(read, read.wanted())]
    assert groups == [["Q8_0", "Q4_K_M"], ["Q6_K", "Q5_K_M"], ["5GB"]]
    options = [read.recipe.options_of(a) for a in read.recipe.artifacts]
    assert {str(o.imatrix) for o in options} == {"all.gguf"}
    assert [o.leave_output for o in options] == [False, True, False, False, True]


def test_the_schema_accepts_every_recipe_here_and_refuses_what_the_reader_refuses() -> None:
    done = invoke("release", "schema")
    schema: Any = json.loads(done.stdout)
    assert schema == json_schema()
    check = Draft202012Validator(schema)
    recipes = [*(ROOT / "examples").glob("*.yaml"), ROOT / "examples/hermes-nano/release.yaml"]
    assert len(recipes) == 6
    for path in recipes:
        content = yaml.safe_load(path.read_text())
        assert check.is_valid(content), path
        assert not check.is_valid({**content, "artefacts": []})
        assert not check.is_valid({**content, "artifacts": [{"to": "Q8_0", "imatirx": "x"}]})
