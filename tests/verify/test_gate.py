"""Gates: which thresholds apply to which type, and files that are no gates."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from convert.errors import InputError
from quantize.compressed_table import KNOWN
from tests.command import invoke
from tests.verify.damage import rewrite_gguf
from tests.verify.test_verify import write_gate, write_suite
from verify.artifact import open_artifact
from verify.gate import DEFAULTS, Drops, read_gate

NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"


@pytest.mark.parametrize("looser", ["Q5_K_M", "Q4_K_M", "Q2_K"])
def test_fewer_bits_may_lose_more_and_never_less(looser: str) -> None:
    gate = read_gate(None)
    order = ["Q8_0", "Q5_K_M", "Q4_K_M", "Q2_K"]
    stricter = gate.of(order[order.index(looser) - 1])
    asked = gate.of(looser)
    assert asked.same_calls < stricter.same_calls
    for check in Drops.model_fields:
        assert getattr(asked.drops, check) >= getattr(stricter.drops, check)
    assert asked.kl > stricter.kl
    assert asked.same_trigger < stricter.same_trigger
    assert asked.drops.tool_calls > stricter.drops.tool_calls


@pytest.mark.parametrize("name", ["FP8_DYNAMIC", "W8A8", "Q8_0", "Q6_K", "served", "BF16"])
def test_eight_bits_are_held_to_one_point(name: str) -> None:
    assert read_gate(None).of(name).drops.tool_calls == 0.01


def test_every_type_that_can_be_made_for_vllm_has_a_class_of_its_own() -> None:
    listed = {name for asked in read_gate(None).classes for name in asked.types}
    assert set(KNOWN) <= listed


def test_the_gate_among_the_prompts_of_the_reference_wins_over_the_defaults() -> None:
    gate = read_gate(None, NANO)
    assert "no evidence about any Hermes model" in " ".join(gate.note.split())
    assert gate.of("Q8_0").drops.tool_calls == 0.03
    assert read_gate(DEFAULTS, NANO).classes == read_gate(None).classes


def test_what_must_be_said_of_a_reference_is_said_under_any_gate(tmp_path: Path) -> None:
    given = yaml.safe_load(DEFAULTS.read_text()) | {"note": "Looser for the preview."}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(given))
    own = read_gate(None, NANO).note
    assert "no evidence about any Hermes model" in " ".join(own.split())
    assert read_gate(path, NANO).note == f"Looser for the preview. {own}"
    assert read_gate(path, NANO).classes == read_gate(None).classes


@pytest.mark.parametrize(
    "name", ["BF16", "Q8_0", "Q6_K", "FP8_DYNAMIC", "Q5_K_M", "Q4_K_M", "Q2_K"]
)
def test_hermes_nano_has_the_default_limits_on_log_probabilities(name: str) -> None:
    ours, default = read_gate(None, NANO).of(name), read_gate(None).of(name)
    assert (ours.kl, ours.same_trigger) == (default.kl, default.same_trigger)


def test_a_cast_is_held_to_a_tenth_of_what_eight_bits_may_differ() -> None:
    gate = read_gate(None)
    assert [gate.of(name).kl for name in ("BF16", "Q8_0", "Q6_K")] == [0.001, 0.01, 0.02]


def test_a_gate_file_is_for_the_report_not_for_the_model() -> None:
    from convert.checkpoint import Checkpoint

    with Checkpoint.open(NANO) as checkpoint:
        assert not [name for name in checkpoint.side_files() if "gate" in name]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["classes"][0]["drops"].update(tool_call=0.1), "did you mean 'tool_calls'"),
        (lambda c: c["classes"][0]["drops"].pop("json_mode"), "json_mode: Field required"),
        (lambda c: c["classes"][0].update(same_calls=1.5), "less than 1"),
        (lambda c: c["classes"][0]["drops"].update(tool_calls=0), "greater than 0"),
        (lambda c: c["classes"].pop(), "the last class must be for every other type"),
        (lambda c: c["classes"][0]["types"].append("Q8_0"), "Q8_0 is in two classes"),
        (lambda c: c.update(classes=[]), "at least 1"),
        (lambda c: c["classes"][0].update(kl=float("inf")), "finite number"),
        (lambda c: c["classes"][0].update(kl=0), "greater than 0"),
    ],
)
def test_a_file_that_is_no_gate_is_named_by_its_line(
    tmp_path: Path, edit: object, message: str
) -> None:
    content = yaml.safe_load(DEFAULTS.read_text())
    assert callable(edit)
    edit(content)
    path = tmp_path / "gate.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"gate\.yaml:\d+: ") as caught:
        read_gate(path)
    assert message in str(caught.value)


def test_a_gate_that_is_not_there(reference_folder: Path, artifacts: dict[str, Path]) -> None:
    done = invoke("verify", reference_folder, artifacts["Q8_0"], "--gate", "absent.yaml")
    assert done.exit_code == 2
    assert "absent.yaml: not found" in done.stderr


def test_the_type_is_the_published_name_only_where_the_tensors_can_be_it(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    def state(number: int) -> str:
        path = rewrite_gguf(
            artifacts["Q8_0"],
            tmp_path / f"{number}.gguf",
            fields=lambda fields: fields.__setitem__("general.file_type", number),
        )
        return open_artifact(path).type

    assert state(7) == "Q8_0"
    assert state(15) == "Q8_0"  # says Q4_K_M, holds no Q4_K
    assert state(9999) == "Q8_0"


@pytest.mark.parametrize("target", ["Q4_K_M", "Q5_K_S", "Q3_K_L", "Q2_K", "IQ4_XS"])
def test_mixtures_are_called_by_their_name(
    reference_folder: Path, tmp_path: Path, target: str
) -> None:
    from quantize.job import quantize

    quantize(str(reference_folder), tmp_path, [target], name="m")
    assert open_artifact(tmp_path / f"m-{target}.gguf").type == target


def test_a_matrix_with_fewer_bits_than_the_mixture_has_takes_its_name_away(
    reference_folder: Path, tmp_path: Path
) -> None:
    from quantize.choice import Overrides
    from quantize.job import quantize

    overrides = Overrides(patterns=((r"blk\.1\.ffn_down", "Q2_K"),))
    quantize(str(reference_folder), tmp_path, ["Q4_K_M"], name="m", overrides=overrides)
    assert open_artifact(tmp_path / "m-Q4_K_M.gguf").type == "Q4_K"


def test_a_folder_for_the_report_that_cannot_be_is_said_before_anything_runs(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = invoke("verify", reference_folder, artifacts["Q8_0"], "--out", tmp_path / "file")
    assert done.exit_code == 2
    assert "file: cannot be made a folder" in done.stderr


def test_the_gate_on_the_command_line_decides(
    reference_folder: Path, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    suite, gate = write_suite(tmp_path, 3), write_gate(tmp_path)
    arguments = ["verify", reference_folder, artifacts["Q8_0"], "--suite", suite, "--gate", gate]
    done = invoke(*arguments, "--json", "--out", tmp_path / "report")
    assert done.exit_code == 3
    assert '"class": "all"' in done.stdout
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "junit.xml", "prompt-tokens.jsonl", "report.html", "report.json",
    ]  # fmt: skip
