"""inspect says the same of a checkpoint and of what is made of it, and survives hostile files."""

from __future__ import annotations

import json
from pathlib import Path

import gguf

from convert.inspection import inspect
from quantize.job import quantize
from tests.command import invoke
from tests.miniature import Shape, change_json, write_checkpoint


def test_inspect_says_the_same_of_a_checkpoint_and_what_is_made_of_it(
    tmp_path: Path, miniature: Path
) -> None:
    quantize(str(miniature), tmp_path, ["FP8_DYNAMIC", "Q4_K_M"], name="m")
    paths = (miniature, tmp_path / "m-FP8_DYNAMIC", tmp_path / "m-Q4_K_M.gguf")
    found = []
    for path in paths:
        done = invoke("inspect", path, "--json")
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
        shown = invoke("inspect", path)
        assert f"{found[-1]['parameters']:,}" in shown.stdout
    for key in ("parameters", "layers", "hidden_size", "heads", "kv_heads", "context_length"):
        assert len({report[key] for report in found}) == 1, key
    for key in ("vocabulary", "tied_embeddings", "rope_scaling", "special_tokens", "family"):
        assert len({str(report[key]) for report in found}) == 1, key
    assert [report["quantization"] for report in found] == [
        None,
        "float-quantized FP8_DYNAMIC",
        "Q4_K",
    ]
    assert found[0]["special_tokens"] == {"bos": "<|begin_of_text|>", "eos": "<|im_end|>"}
    assert found[0]["chat_templates"] == ["default", "tool_use"]
    assert found[1]["stored"][0]["type"] == "F8_E4M3"
    assert found[0]["bits_per_weight"] > 15.9 > 9.1 > found[1]["bits_per_weight"]


def test_parameters_do_not_depend_on_how_weights_are_packed(
    tmp_path: Path, miniature: Path
) -> None:
    targets = ["W4A16", "W8A16", "NVFP4A16", "MXFP4", "FP8_BLOCK"]
    quantize(str(miniature), tmp_path, targets, name="m")
    expected = inspect(str(miniature)).parameters
    for target in targets:
        assert inspect(str(tmp_path / f"m-{target}")).parameters == expected, target


def test_inspect_of_an_unknown_family_says_what_it_can(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", shape=Shape(layers=1))
    change_json(source / "config.json", architectures=["GemmaForCausalLM"])
    found = inspect(str(source))
    assert (found.family, found.architecture) == (None, "GemmaForCausalLM")
    assert invoke("inspect", source).exit_code == 0


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "s", shape=Shape(layers=1))
    (source / "README.md").write_text("---\nmodel_name: 'a\\[/red] [red] :tada:'\n---\n")
    shown = invoke("inspect", source)
    assert shown.exit_code == 0, shown.output
    assert r"a\[/red] [red] :tada:" in shown.stdout
    out = tmp_path / "x[" / "b][red]:tada:\udcff"  # [/b] closes what nothing has opened
    done = invoke("convert", source, "--out", out, "--to", "BF16")
    assert done.exit_code == 0, done.output
    assert f"in {tmp_path}/x[/b][red]:tada:\\udcff" in done.stdout


def test_inspect_of_a_gguf_with_fields_of_the_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "\x1b[31mllama")
    writer.add_uint32("general.name", 7)
    writer.add_string("tokenizer.ggml.tokens", "abc")
    writer.add_array("llama.block_count", [1, 2])
    writer.add_int32("tokenizer.ggml.bos_token_id", -9)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    done = invoke("inspect", path)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.stdout
    assert json.loads(invoke("inspect", path, "--json").stdout)["name"] is None
