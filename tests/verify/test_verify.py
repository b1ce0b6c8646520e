"""The verb from end to end: faithful artifacts pass, broken ones fail, thin evidence says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from convert.errors import (
    CheckpointError,
    ContextError,
    ConversationError,
    InputError,
    TensorError,
    UnsupportedError,
)
from convert.rendering import Tokenizer
from tests.verify.damage import rewrite_gguf
from verify.artifact import Artifact, Kind
from verify.check import Outcome, State
from verify.engines import Engine
from verify.engines.scripted import ScriptedEngine
from verify.gate import Drops
from verify.report.contents import ArtifactReport
from verify.report.terminal import print_report
from verify.verify import verify

RIGHT = '<tool_call>\n{{"name": "f", "arguments": {{"x": {}}}}}\n</tool_call><|im_end|>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
Script = Callable[[int], str]


def write_suite(folder: Path, count: int) -> Path:
    """`count` conversations: one in ten without tools, the others expecting f(x=their number)."""
    records = []
    for i in range(count):
        record = {"id": f"p{i}", "messages": [{"role": "user", "content": f"call f with {i}"}]}
        if i % 10 == 9:
            records.append({**record, "expected": {"refusal": False}})
        else:
            calls = [{"name": "f", "arguments": {"x": i}}]
            records.append({**record, "tools": [TOOL], "expected": {"calls": calls}})
    path = folder / "suite.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def write_gate(folder: Path, drop: float = 0.1, equality: str = "json") -> Path:
    """A gate for every type with one margin, which a few dozen prompts can show."""
    drops = dict.fromkeys(Drops.model_fields, drop)
    asked = {"name": "all", "types": ["*"], "same_calls": 0.9, "kl": 0.01}
    asked |= {"same_trigger": 0.9, "drops": drops, "equality": equality}
    path = folder / "gate.yaml"
    path.write_text(json.dumps({"classes": [asked]}))
    return path


def outcome_of(report: ArtifactReport, check: str) -> Outcome:
    return next(outcome for outcome in report.outcomes if outcome.check == check)


def right(i: int) -> str:
    return "Of course.<|im_end|>" if i % 10 == 9 else RIGHT.format(i)


def scripted(folder: Path, by_kind: dict[Kind, Script]) -> Callable[[Artifact], Engine]:
    """Engines that answer prompt number i, read from the prompt's text, by their kind's script."""
    tokenizer = Tokenizer.open(folder)

    def open_engine(artifact: Artifact) -> Engine:
        def reply(prompt: Sequence[int]) -> Sequence[int]:
            text = tokenizer.decode(prompt)
            number = int(text.split("call f with ")[1].split("<")[0])
            return tokenizer.encode(by_kind[artifact.kind](number))

        return ScriptedEngine(reply)

    return open_engine


@pytest.fixture
def run(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> Callable[..., ArtifactReport]:
    """Verify the Q8_0 file, the reference answering right and the file as told."""

    def verify_one(script: Script, count: int = 100, path: Path | None = None) -> ArtifactReport:
        engines = scripted(reference_folder, {Kind.CHECKPOINT: right, Kind.GGUF: script})
        report = verify(
            reference_folder,
            [path or artifacts["Q8_0"]],
            suite=write_suite(tmp_path, count),
            gate=write_gate(tmp_path),
            open_engine=engines,
        )
        assert report.reference.scores.kinds["calls"].value == 1
        return report.artifacts[0]

    return verify_one


def numbers(report: ArtifactReport) -> dict[str, object]:
    return dict(outcome_of(report, "agreement").verdict.numbers)


def test_a_faithful_artifact_passes(run: Callable[..., ArtifactReport]) -> None:
    report = run(right)
    assert report.state is State.PASS
    assert [outcome.check for outcome in report.outcomes] == [
        "structure", "tokens", "templates", "rendering", "gguf_weights", "agreement", "tool_calls",
        "lost_calls", "malformed_calls", "schema_valid", "wrong_refusals", "portability",
    ]  # fmt: skip
    assert report.not_measured == ("spurious_calls", "json_mode", "same_json", "missing_refusals")
    assert report.pairs == {**dict.fromkeys(report.pairs, 0), "identical": 100}
    assert report.scores is not None
    assert report.scores.kinds["calls"].hits == report.scores.kinds["calls"].total == 90
    assert report.scores.kinds["harmless"].total == 10
    assert report.scores.malformed.hits == 0
    assert numbers(report)["with_tools"] == 90
    assert numbers(report)["same_text"] == 100


@pytest.mark.parametrize(
    ("wrong", "malformed"),
    [
        (lambda i: RIGHT.format(i + 1), 0),
        (lambda i: RIGHT.format(float(i)), 0),
        (lambda i: RIGHT.format(f'"{i}"'), 0),
        (lambda i: "I would rather not.<|im_end|>", 0),
        (lambda i: RIGHT.format(i).replace('"name": "f"', '"name": "g"'), 0),
        (lambda i: RIGHT.format(i).replace("</tool_call>", ""), 90),
        (lambda i: RIGHT.format(i).replace('"', "'"), 90),
        (lambda i: RIGHT.format(i).replace("<|im_end|>", "\n") + RIGHT.format(i), 0),
    ],
)
def test_flipped_calls_fail(
    run: Callable[..., ArtifactReport], wrong: Script, malformed: int
) -> None:
    report = run(lambda i: right(i) if i % 10 == 9 else wrong(i))
    assert report.state is State.FAIL
    assert numbers(report)["same_calls"] == 0
    assert numbers(report)["same_text"] == 10
    assert report.scores is not None
    assert report.scores.malformed.hits == malformed
    first = outcome_of(report, "agreement").findings[0]
    assert first.subject == "p0"
    assert "calls differ" in first.message


def test_text_beside_the_same_calls_is_no_failure(run: Callable[..., ArtifactReport]) -> None:
    report = run(lambda i: "Well, " + right(i))
    assert report.state is State.PASS
    assert (numbers(report)["same_calls"], numbers(report)["same_text"]) == (90, 0)


def test_few_prompts_and_few_flips_are_not_enough_evidence(
    run: Callable[..., ArtifactReport],
) -> None:
    assert run(right, count=20).state is State.NOT_ENOUGH_EVIDENCE
    assert run(right, count=39).state is State.PASS
    doubtful = run(lambda i: right(0) if i % 10 == 1 else right(i))
    assert doubtful.state is State.NOT_ENOUGH_EVIDENCE
    needed = numbers(doubtful)["prompts_needed"]
    assert needed is None or isinstance(needed, int)
    assert re.search(
        r"about \d+ prompts needed|no number", outcome_of(doubtful, "agreement").verdict.reason
    )


def test_one_flip_in_a_hundred_passes_and_is_shown(run: Callable[..., ArtifactReport]) -> None:
    report = run(lambda i: right(i + 1) if i == 42 else right(i))
    assert report.state is State.PASS
    assert [finding.subject for finding in outcome_of(report, "agreement").findings] == ["p42"]


def test_an_answer_without_an_end_is_counted(run: Callable[..., ArtifactReport]) -> None:
    report = run(lambda i: right(i).removesuffix("<|im_end|>"))
    assert report.scores is not None
    assert report.scores.cut_off.hits == 100


def test_a_broken_structure_is_not_run(
    run: Callable[..., ArtifactReport], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = rewrite_gguf(
        artifacts["Q8_0"], tmp_path / "broken.gguf", tensors=lambda t: t.pop("blk.0.attn_q.weight")
    )

    def never(_: int) -> str:
        raise AssertionError("it was run")

    report = run(never, path=path)
    assert report.state is State.FAIL
    assert (report.engine, report.scores) == (None, None)
    assert "not run" in report.outcomes[-1].verdict.reason


def test_one_that_cannot_be_loaded_fails_and_the_next_is_verified(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    engines = scripted(reference_folder, {Kind.CHECKPOINT: right, Kind.GGUF: right})

    def open_engine(artifact: Artifact) -> Engine:
        if artifact.type == "F32" and artifact.kind is Kind.GGUF:
            raise CheckpointError("no memory for it")
        return engines(artifact)

    report = verify(
        reference_folder,
        [artifacts["F32"], artifacts["Q8_0"]],
        suite=write_suite(tmp_path, 60),
        gate=write_gate(tmp_path),
        open_engine=open_engine,
    )
    assert [a.state for a in report.artifacts] == [State.FAIL, State.PASS]
    assert "no memory for it" in report.artifacts[0].outcomes[-1].verdict.reason
    assert (report.state, report.exit_code) == (State.FAIL, 1)


def test_one_that_cannot_be_computed_as_meant_is_not_judged(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "w8a16"))
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    (folder / "config.json").write_text(json.dumps(config))
    report = verify(reference_folder, [folder], suite=write_suite(tmp_path, 2), max_new_tokens=1)
    assert report.exit_code == 3
    assert "activations" in report.artifacts[0].outcomes[-1].verdict.reason


def test_an_incomplete_reference_is_bad_input_and_no_artifacts_fault(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(reference_folder, tmp_path / "cut"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(TensorError, match=r"model\.norm\.weight: missing"):
        verify(folder, [artifacts["Q8_0"]], suite=write_suite(tmp_path, 2))


def test_real_engines_agree_and_the_report_is_whole(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    report = verify(
        reference_folder,
        list(artifacts.values()),
        suite=write_suite(tmp_path, 44),
        gate=write_gate(tmp_path),
        max_new_tokens=4,
        on_progress=lambda *event: seen.append(event),
    )
    by_name = {artifact.name: artifact for artifact in report.artifacts}
    by_check = {outcome.check: outcome for outcome in by_name["mini-F32.gguf"].outcomes}
    # four tokens end no reply of this model, and it never calls: all else passes
    undecided = {name for name, o in by_check.items() if o.verdict.state is not State.PASS}
    assert undecided == {"agreement", "tool_calls", "lost_calls", "trigger"}
    assert "cut off" in by_check["agreement"].verdict.reason
    assert numbers(by_name["mini-F32.gguf"])["same_text"] >= 40
    fp8 = by_name["mini-FP8_DYNAMIC"].engine
    assert fp8 is not None
    assert fp8.activations.startswith("float8_e4m3")
    assert ("mini-Q8_0.gguf", 44, 44) in seen
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["schema_version"] == 4
    assert str(tmp_path) not in json.dumps(content)
    assert str(reference_folder.parent) not in json.dumps(content)
    rate = content["artifacts"][0]["scores"]["kinds"]["calls"]
    assert set(rate) == {"hits", "total", "rate", "low", "high"}
    console = Console(record=True, width=80, file=(tmp_path / "out").open("w"))
    print_report(report, console)
    shown = console.export_text()
    for word in ("mini-Q8_0.gguf", "mini-FP8_DYNAMIC", "same calls", "of 44", "became: identical"):
        assert word in shown


def test_what_cannot_be_begun_with(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    suite = write_suite(tmp_path, 10)
    with pytest.raises(InputError, match="no artifact"):
        verify(reference_folder, [], suite=suite)
    with pytest.raises(UnsupportedError, match="must be the original"):
        verify(artifacts["FP8_DYNAMIC"], [artifacts["Q8_0"]], suite=suite)
    with pytest.raises(InputError, match="--suite"):
        verify(reference_folder, [artifacts["Q8_0"]])
    with pytest.raises(InputError, match=r"absent\.gguf: not found"):
        verify(reference_folder, [tmp_path / "absent.gguf"], suite=suite)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"not a \.gguf file"):
        verify(reference_folder, [tmp_path / "notes.txt"], suite=suite)
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "bitsandbytes"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="bitsandbytes"):
        verify(reference_folder, [folder], suite=suite)


def test_a_suite_that_cannot_be_asked(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    suite = tmp_path / "suite.jsonl"
    suite.write_text(json.dumps({"id": "done", "messages": messages}))
    with pytest.raises(ConversationError, match="'done' ends with the assistant"):
        verify(reference_folder, [artifacts["Q8_0"]], suite=suite)
    suite.write_text(
        json.dumps({"id": "long", "messages": [{"role": "user", "content": "a" * 3000}]})
    )
    with pytest.raises(ConversationError, match=r"'long' has .* leaves room"):
        verify(reference_folder, [artifacts["Q8_0"]], suite=suite)


def test_without_memory_to_answer_nothing_is_said_against_it(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    engines = scripted(reference_folder, {Kind.CHECKPOINT: right, Kind.GGUF: right})

    def open_engine(artifact: Artifact) -> Engine:
        if artifact.kind is Kind.GGUF:
            raise ContextError("no memory for 9 tokens")
        return engines(artifact)

    suite = write_suite(tmp_path, 10)
    report = verify(reference_folder, [artifacts["Q8_0"]], suite=suite, open_engine=open_engine)
    outcome = outcome_of(report.artifacts[0], "agreement")
    assert outcome.verdict.state is State.NOT_ENOUGH_EVIDENCE
    assert outcome.verdict.reason == "no memory for 9 tokens"
    assert report.exit_code == 3
