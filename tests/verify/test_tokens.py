"""Tokens and templates: edited vocabularies and templates are caught."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint import Checkpoint
from convert.rendering import Tokenizer
from quantize.job import quantize
from tests.miniature import Shape, change_json, write_checkpoint
from tests.verify.conftest import evidence
from tests.verify.damage import Edit, rewrite_gguf
from verify.check import State
from verify.evidence import Reference
from verify.templates import check_templates
from verify.tokens import READ_BY_LOADERS, check_tokens, token_strings

TAG = 263
BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False
}  # fmt: skip
"""A post-processor that adds neither BOS nor EOS, and says so."""
NANO = Path(__file__).parents[2] / "examples" / "hermes-nano"


def swap(key: str, a: int, b: int) -> Edit:
    def edit(values: dict[str, Any]) -> None:
        values[key][a], values[key][b] = values[key][b], values[key][a]

    return edit


def put(key: str, value: Any) -> Edit:
    return lambda values: values.__setitem__(key, value)


def put_item(key: str, index: int, value: Any) -> Edit:
    return lambda values: values[key].__setitem__(index, value)


@pytest.mark.parametrize("target", ["F32", "Q8_0", "FP8_DYNAMIC"])
def test_undamaged_artifacts_pass(
    reference: Reference, artifacts: dict[str, Path], target: str
) -> None:
    for check in (check_tokens, check_templates):
        outcome = check(evidence(reference, artifacts[target]))
        assert outcome.verdict.state is State.PASS, outcome.findings


def test_the_strings_hold_every_tag_in_every_company(reference: Reference) -> None:
    tokenizer = Tokenizer.open(reference.folder)
    strings = list(token_strings(tokenizer))
    assert strings == list(token_strings(tokenizer))
    for tag in ("<tool_call>", "</tool_call>", "<|im_end|>"):
        for neighbour in ("\n", " ", '"', "{", "}"):
            assert f"{neighbour}{tag}{neighbour}" in strings


@pytest.mark.parametrize(
    "fields",
    [
        swap("tokenizer.ggml.tokens", 40, 41),
        swap("tokenizer.ggml.tokens", TAG, TAG + 1),
        put_item("tokenizer.ggml.tokens", TAG, "<tool-call>"),
        put_item("tokenizer.ggml.token_type", TAG, 1),
        put("tokenizer.ggml.merges", ["t i"]),
        put("tokenizer.ggml.bos_token_id", 258),
        put("tokenizer.ggml.eos_token_id", 258),
    ],
)
def test_an_edited_vocabulary(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, fields: Edit
) -> None:
    path = rewrite_gguf(artifacts["Q8_0"], tmp_path / "broken.gguf", fields=fields)
    outcome = check_tokens(evidence(reference, path))
    assert outcome.verdict.state is State.FAIL
    assert outcome.findings
    assert outcome.verdict.numbers["different"]


def test_another_way_to_split_text(tmp_path: Path) -> None:
    """With a vocabulary that has merges, a wrong pre-tokenizer shows in digits and contractions."""
    stored = json.loads((NANO / "tokenizer.json").read_text())
    size = len({*stored["model"]["vocab"], *(t["content"] for t in stored["added_tokens"])})
    folder = write_checkpoint(tmp_path / "nano", shape=Shape(layers=1, vocab=size))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(NANO / name, folder / name)
    tokenizer = Tokenizer.open(folder)
    change_json(
        folder / "config.json", bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id
    )
    change_json(folder / "generation_config.json", eos_token_id=tokenizer.eos_id)
    quantize(str(folder), tmp_path, ["Q8_0"], name="nano")
    path = tmp_path / "nano-Q8_0.gguf"
    with Checkpoint.open(folder) as checkpoint:
        reference = Reference(checkpoint, tokenizer, (), ())
        assert check_tokens(evidence(reference, path)).verdict.state is State.PASS
        edited = rewrite_gguf(
            path, tmp_path / "broken.gguf", fields=put("tokenizer.ggml.pre", "gpt-2")
        )
        outcome = check_tokens(evidence(reference, edited))
        assert outcome.verdict.state is State.FAIL
        assert "ids differ from place" in outcome.findings[0].message


def test_a_gguf_that_cannot_be_read(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(artifacts["Q8_0"].read_bytes()[:5000])
    for check in (check_tokens, check_templates):
        assert check(evidence(reference, path)).verdict.state is State.FAIL


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_folder_with_other_side_files(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content, indent=1))
    outcome = check_tokens(evidence(reference, folder))
    assert [(f.subject, f.message) for f in outcome.findings] == [
        (name, "is not the source's, byte for byte")
    ]
    (folder / name).unlink()
    (finding,) = check_tokens(evidence(reference, folder)).findings
    assert finding.message == "missing; the source has it"


def test_a_stop_token_that_llama_cpp_goes_on_after(tmp_path: Path) -> None:
    """A second end of turn in generation_config.json, which no GGUF holds as a list."""
    folder = write_checkpoint(tmp_path / "m")
    change_json(folder / "generation_config.json", eos_token_id=[260, TAG + 1])
    quantize(str(folder), tmp_path, ["Q8_0"], name="m")
    whole = tmp_path / "m-Q8_0.gguf"
    with Checkpoint.open(folder) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(folder), (), ())
        outcome = check_tokens(evidence(reference, whole))
        assert outcome.verdict.state is State.FAIL
        (finding,) = outcome.findings
        assert finding.subject == f"token {TAG + 1} ('</tool_call>')"
        assert "eot_token_id" in finding.message
        mended = rewrite_gguf(
            whole, tmp_path / "mended.gguf", fields=put("tokenizer.ggml.eot_token_id", TAG + 1)
        )
        assert check_tokens(evidence(reference, mended)).verdict.state is State.PASS


def test_control_tokens_at_which_llama_cpp_ends_more_replies_are_no_fault(
    reference: Reference, artifacts: dict[str, Path]
) -> None:
    """`<|end_of_text|>` ends a reply in llama.cpp whatever generation_config.json says."""
    from verify.engines.served_vocabulary import ServedVocabulary

    vocabulary = ServedVocabulary(artifacts["Q8_0"])
    try:
        assert vocabulary.ends() == {258, 260}
        assert (vocabulary.adds_bos, vocabulary.adds_eos) == (True, False)
        assert vocabulary.text_of(vocabulary.bos_id) == "<|begin_of_text|>"
        assert vocabulary.text_of(-1) is None
    finally:
        vocabulary.close()
    assert check_tokens(evidence(reference, artifacts["Q8_0"])).verdict.state is State.PASS


def test_a_word_that_llama_cpp_takes_for_the_end_in_every_gguf_is_told(tmp_path: Path) -> None:
    """As `</s>` in Qwen's vocabulary: no fault of the file, and worth knowing."""
    folder = write_checkpoint(tmp_path / "m")
    path = folder / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    change_json(path, added_tokens=[*added, {**added[-1], "id": 267, "content": "</s>"}])
    quantize(str(folder), tmp_path, ["Q8_0"], name="m")
    with Checkpoint.open(folder) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(folder), (), ())
        outcome = check_tokens(evidence(reference, tmp_path / "m-Q8_0.gguf"))
    assert outcome.verdict.state is State.PASS, outcome.findings
    (note,) = outcome.findings
    assert note.subject == "token 267 ('</s>')"
    assert "in every GGUF of this model" in note.message


def test_what_is_missing_is_taken_for_no_only_where_it_means_no(tmp_path: Path) -> None:
    """Without the key llama.cpp adds a BOS under Llama-3's pre-tokenizer."""
    folder = write_checkpoint(tmp_path / "m")
    change_json(folder / "tokenizer.json", post_processor=BYTE_LEVEL)
    quantize(str(folder), tmp_path, ["Q8_0"], name="m")
    whole = tmp_path / "m-Q8_0.gguf"
    key = "tokenizer.ggml.add_{}_token"
    with Checkpoint.open(folder) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(folder), (), ())
        for kind, state in (("eos", State.PASS), ("bos", State.FAIL)):
            name = key.format(kind)
            path = rewrite_gguf(
                whole, tmp_path / f"{kind}.gguf", fields=lambda v, name=name: v.pop(name)
            )
            outcome = check_tokens(evidence(reference, path))
            assert outcome.verdict.state is state
        assert outcome.findings[0].message == "missing, the reference's is False"


@pytest.mark.parametrize("name", READ_BY_LOADERS)
def test_a_file_that_loaders_read_and_the_source_has_not(
    artifacts: dict[str, Path], reference_folder: Path, tmp_path: Path, name: str
) -> None:
    source = Path(shutil.copytree(reference_folder, tmp_path / "source"))
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "broken"))
    for place in (source, folder):
        if name != "tokenizer.json":
            (place / name).unlink(missing_ok=True)
    with Checkpoint.open(source) as checkpoint:
        reference = Reference(checkpoint, Tokenizer.open(source), (), ())
        assert check_tokens(evidence(reference, folder)).verdict.state is State.PASS
        if name == "tokenizer.json":
            (source / name).unlink()
        else:
            (folder / name).write_text("{}")
        (finding,) = check_tokens(evidence(reference, folder)).findings
        assert finding.message == "the source has none, and loaders read it"
        assert finding.subject == name


def test_words_beside_the_weights_are_nobodys_business(
    reference: Reference, artifacts: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts["FP8_DYNAMIC"], tmp_path / "folder"))
    for name in ("README.md", "recipe.yaml", "NOTICE"):
        (folder / name).write_text("words")
    assert check_tokens(evidence(reference, folder)).verdict.state is State.PASS
