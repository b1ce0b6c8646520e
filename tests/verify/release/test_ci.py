"""The workflows: well-formed, nothing pasted into a script, and their script run as it stands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.verify.release.releases import write_recipe
from verify.release.check import check_release
from verify.release.signing import PUBLIC_KEY_NAME

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTION = ROOT / "action.yml"
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
KNOWN = {
    "actions/checkout@v4",
    "actions/setup-python@v5",
    "actions/cache@v4",
    "actions/cache/restore@v4",
    "actions/upload-artifact@v4",
    "actions/download-artifact@v4",
    "./.hermes-quant",
    "./.github/workflows/release.yml",
}


def load(path: Path) -> Any:
    content = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in content.items()}  # YAML 1.1


def steps_of(content: Any) -> Iterator[Any]:
    if "runs" in content:
        yield from content["runs"]["steps"]
    for job in content.get("jobs", {}).values():
        yield from job.get("steps", [job])


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def lint(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)


def test_workflows_and_action_are_what_their_schemas_say(tmp_path: Path) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = lint(*check, "vendor.github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout
    done = lint(*check, "vendor.github-actions", ACTION)
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert lint(*check, "vendor.github-workflows", broken).returncode == 1


def test_the_security_linter_finds_nothing(tmp_path: Path) -> None:
    zizmor = [Path(sys.executable).with_name("zizmor"), "--offline", "--min-severity", "medium"]
    done = lint(*zizmor, ACTION, *WORKFLOWS)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / ".github" / "workflows" / "broken.yml"
    broken.parent.mkdir(parents=True)
    title = "echo ${{ github.event.pull_request.title }}"
    broken.write_text(WORKFLOWS[0].read_text().replace("- run: .ci/run", f"- run: {title}"))
    assert "template-injection" in lint(*zizmor, broken).stdout


@pytest.mark.parametrize("path", [*WORKFLOWS, ACTION], ids=lambda path: path.name)
def test_every_reference_is_declared_and_no_expression_is_in_a_script(path: Path) -> None:
    content = load(path)
    stated = content.get("on")
    call = stated.get("workflow_call", {}) if isinstance(stated, dict) else {}
    inputs = {**call.get("inputs", {}), **content.get("inputs", {})}
    secrets = call.get("secrets", {})
    for text in strings(content):
        for expression in EXPRESSION.findall(text):
            for kind, name in re.findall(r"\b(inputs|secrets)\.([\w-]+)", expression):
                assert name in (inputs if kind == "inputs" else secrets), expression
    for step in steps_of(content):
        assert ("uses" in step) != ("run" in step), step
        assert "${{" not in step.get("run", "")  # a name with a quote in it would run
        assert step.get("uses") in {*KNOWN, None}
        if "runs" in content and "run" in step:
            assert step["shell"] == "bash"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_need_jobs_that_are_there_and_may_write_nothing(path: Path) -> None:
    content = load(path)
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        needed = job.get("needs", [])
        assert set([needed] if isinstance(needed, str) else needed) <= content["jobs"].keys()
        for what, right in job.get("permissions", {}).items():
            assert right == "read" or what == "id-token"
        for text in strings(job):
            for name, output in re.findall(r"needs\.(\w+)\.outputs\.(\w+)", text):
                assert output in content["jobs"][name]["outputs"]


def test_what_is_called_gets_only_inputs_that_it_declares() -> None:
    action = load(ACTION)["inputs"]
    release = load(ROOT / ".github" / "workflows" / "release.yml")["on"]["workflow_call"]["inputs"]
    given = 0
    for path in WORKFLOWS:
        for step in steps_of(load(path)):
            declared = {"./.hermes-quant": action, "./.github/workflows/release.yml": release}
            if step.get("uses") in declared:
                wanted = declared[step["uses"]]
                assert step["with"].keys() <= wanted.keys()
                required = {name for name, item in wanted.items() if item.get("required")}
                assert required <= step["with"].keys()
                given += 1
    assert given == 3


def run_script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`.ci/release` with a `hermes-quant` of this interpreter on the path."""
    tool = folder / "bin" / "hermes-quant"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hermes_quant "$@"\n')
    tool.chmod(0o755)
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    stated = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "RECIPE": str(folder / "release.yaml"),
        "OUT": str(folder / "dist"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
        **environment,
    }
    words = [str(ROOT / ".ci" / "release")]
    return subprocess.run(words, env=stated, capture_output=True, text=True, check=False)


def test_the_script_runs_the_parts_and_then_the_whole(
    tmp_path: Path, reference_folder: Path
) -> None:
    """A random miniature makes no calls, so its artifacts lack evidence, and the script says so."""
    write_recipe(tmp_path, reference_folder, artifacts=["Q8_0"], gates={"suite": "suite.jsonl"})
    done = run_script(tmp_path, THROWAWAY_KEY="true", SOURCE=str(reference_folder))
    assert done.returncode in (1, 3), done.stderr
    assert "nothing passed, nothing is released" in done.stdout
    summary = (tmp_path / "summary.md").read_text()
    assert f"### Release of release.yaml: exit code {done.returncode}" in summary
    assert "not released:" in summary
    assert (tmp_path / "dist" / "quarantine" / "Mini-Q8_0.gguf.report" / "junit.xml").is_file()
    done = run_script(tmp_path, THROWAWAY_KEY="true", ONLY="Q9")
    assert done.returncode == 2
    assert "--only Q9: the recipe has Q8_0" in done.stderr


def test_the_script_checks_what_it_built(finished: Path, tmp_path: Path) -> None:
    """With everything verified before, the script puts the release together and signs it."""
    key = (finished / "key.pem").read_text()
    (finished / "bin").mkdir(exist_ok=True)
    summary = str(tmp_path / "summary.md")
    done = run_script(finished, SIGNING_KEY=key, GITHUB_STEP_SUMMARY=summary)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no local path, token or private key in any file" in done.stdout
    assert check_release(finished / "dist").passed
    assert (finished / "dist" / PUBLIC_KEY_NAME).read_bytes() == (
        finished / "key.pem.pub"
    ).read_bytes()
    planned = subprocess.run(
        [
            *(sys.executable, "-m", "hermes_quant", "release", "build"),
            *(str(finished / "release.yaml"), "--out", "x", "--dry-run", "--json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    targets = [o["target"] for o in json.loads(planned.stdout)["outputs"]]  # the matrix
    assert targets == ["FP8_DYNAMIC", "Q8_0", "Q4_K_M"]
