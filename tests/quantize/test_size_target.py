"""The best mixture of a size: it fits, nothing better fits, and its errors are the real ones."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conformance import write_imatrix
from convert.errors import InputError, TensorError
from convert.gguf_reader import GGUFFile, read_gguf
from convert.model import open_model
from quantize import size_target
from quantize.choice import Choice, Overrides
from quantize.ggml import Ggml
from quantize.importance import importance_for, read_importance
from quantize.job import quantize
from quantize.size_target import Candidate, SizeTarget, choose_to_fit, measure_candidates
from tests.families import write_family
from tests.miniature import DTYPES, Shape, weights, write_checkpoint, write_tokenizer

LAYERS = Shape(layers=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("size") / "model", shape=LAYERS)


@pytest.fixture(scope="module")
def imatrix(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imatrix")
    quantize(str(model), folder, ["BF16"], name="m")
    write_imatrix(folder / "m-BF16.gguf", folder / "imatrix.gguf")
    return folder / "imatrix.gguf"


def decoded(file: GGUFFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    stored = np.frombuffer(file.read(name), dtype=np.uint8)
    if tensor.ggml_type == "F32":
        return stored.view(np.float32).reshape(tensor.shape)
    return Ggml(tensor.ggml_type).decode([stored], tensor.shape)


def true_errors(truth: Path, made: Path) -> dict[str, float]:
    """Relative squared errors of whole matrices, from the files alone."""
    exact, stored = read_gguf(truth), read_gguf(made)
    found = {}
    for name, tensor in exact.tensors.items():
        if len(tensor.shape) > 1:
            a = decoded(exact, name).astype(np.float64)
            found[name] = float(((a - decoded(stored, name)) ** 2).sum() / (a**2).sum())
    return found


@pytest.mark.parametrize("limit", [1_000_000, 1_234_567, 1_700_000])
def test_the_file_is_no_larger_than_asked_and_hardly_smaller(
    tmp_path: Path, model: Path, limit: int
) -> None:
    quantize(str(model), tmp_path, fit_bytes=limit, name="m")
    (made,) = tmp_path.glob("*.gguf")
    assert 0.99 * limit < made.stat().st_size <= limit


def test_it_has_less_error_than_the_published_mixture_of_its_size(
    tmp_path: Path, model: Path
) -> None:
    quantize(str(model), tmp_path, ["F32", "Q4_K_M"], name="m")
    limit = (tmp_path / "m-Q4_K_M.gguf").stat().st_size
    job = quantize(str(model), tmp_path / "fit", fit_bytes=limit, name="m")
    (made,) = (tmp_path / "fit").glob("*.gguf")
    ours = sum(true_errors(tmp_path / "m-F32.gguf", made).values())
    theirs = sum(true_errors(tmp_path / "m-F32.gguf", tmp_path / "m-Q4_K_M.gguf").values())
    assert ours < 0.9 * theirs
    chosen, published = job.plan.artifacts[0].notes
    assert float(chosen.rpartition(" ")[2]) == pytest.approx(ours, rel=0.01)
    assert "Q4_K_M" in published
    assert float(published.rpartition(" ")[2]) == pytest.approx(theirs, rel=0.01)


def test_a_sample_says_what_the_whole_says(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(values: int) -> list[tuple[str | None, float]]:
        monkeypatch.setattr(size_target, "SAMPLE_VALUES", values)
        with open_model(str(model)) as opened:
            found = measure_candidates(opened.checkpoint, opened.gguf_outputs(), {})
        return [(c.choice.ggml_type, c.error) for row in found.values() for c in row]

    whole, sample, again = measure(1 << 30), measure(64 * 256), measure(64 * 256)
    assert sample == again
    assert sample != whole
    for (name, a), (other, b) in zip(whole, sample, strict=True):
        assert name == other
        assert a == pytest.approx(b, rel=0.25)


def test_better_types_measure_better(model: Path) -> None:
    with open_model(str(model)) as opened:
        found = measure_candidates(opened.checkpoint, opened.gguf_outputs(), {})
    for row in found.values():
        error = {c.choice.ggml_type: c.error for c in row}
        assert error["Q2_K"] > error["Q3_K"] > error["Q4_K"] > error["Q5_K"] > error["Q8_0"] > 0
        sizes = [c.size_bytes for c in row]
        assert sizes == sorted(set(sizes))


def test_an_imatrix_weighs_the_errors_and_admits_the_smallest_types(
    model: Path, imatrix: Path
) -> None:
    with open_model(str(model)) as opened:
        outputs = opened.gguf_outputs()
        importance = importance_for(read_importance(imatrix), outputs)
        plain = measure_candidates(opened.checkpoint, outputs, {})
        weighted = measure_candidates(opened.checkpoint, outputs, importance)
        name = "blk.0.ffn_down.weight"
        output = next(o for o in outputs if o.tensor.name == name)
        values = opened.checkpoint.read_rows(output.tensor.sources[0].tensor, 0, LAYERS.hidden)
    assert "IQ2_S" not in {c.choice.ggml_type for c in plain[name]}
    assert "IQ2_S" in {c.choice.ggml_type for c in weighted[name]}
    encoded = Ggml("Q3_K").encode(values, None, importance[name]).parts
    exact = values.float32().astype(np.float64)
    lost = (exact - Ggml("Q3_K").decode(encoded, exact.shape)) ** 2
    column = importance[name].values
    expected = (lost * column).sum() / (exact**2 * column).sum()
    (measured,) = [c.error for c in weighted[name] if c.choice.ggml_type == "Q3_K"]
    assert measured == pytest.approx(expected, rel=1e-9)


def test_every_expert_is_measured_with_its_own_importance(tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    write_tokenizer(vocabulary)
    model = write_family(tmp_path / "model", "mixtral", vocabulary, vocab_size=320)
    quantize(str(model), tmp_path, ["BF16"], name="m")
    write_imatrix(tmp_path / "m-BF16.gguf", tmp_path / "i.gguf")
    size = (tmp_path / "m-BF16.gguf").stat().st_size // 5
    quantize(str(model), tmp_path / "out", fit_bytes=size, imatrix=tmp_path / "i.gguf", name="m")
    (made,) = (tmp_path / "out").glob("*.gguf")
    assert 0.95 * size < made.stat().st_size <= size


def test_a_tied_embedding_counts_twice(tmp_path: Path) -> None:
    errors = []
    for tied in (True, False):
        model = write_checkpoint(tmp_path / str(tied), tied=tied)
        with open_model(str(model)) as opened:
            found = measure_candidates(opened.checkpoint, opened.gguf_outputs(), {})
        errors.append([c.error for c in found["token_embd.weight"]])
    np.testing.assert_allclose(errors[0], 2 * np.array(errors[1]))


def test_an_override_is_left_as_it_is(tmp_path: Path, model: Path) -> None:
    options = Overrides(patterns=(("attn_v", "Q8_0"),), output_type="Q6_K")
    quantize(str(model), tmp_path, bits_per_weight=4.5, overrides=options, name="m")
    tensors = read_gguf(tmp_path / "m-BPW_4_5.gguf").tensors
    assert tensors["output.weight"].ggml_type == "Q6_K"
    assert {t.ggml_type for n, t in tensors.items() if "attn_v" in n} == {"Q8_0"}


def test_headers_of_split_files_count(tmp_path: Path, model: Path) -> None:
    quantize(str(model), tmp_path, fit_bytes=1_300_000, max_file_bytes=200_000, name="m")
    files = list((tmp_path / "m-FIT_1_3MB").glob("*.gguf"))
    assert len(files) > 5
    assert sum(file.stat().st_size for file in files) <= 1_300_000


def test_bits_per_weight_are_those_of_the_whole_file(tmp_path: Path, model: Path) -> None:
    job = quantize(str(model), tmp_path, bits_per_weight=6.0, name="m")
    bits = 8 * (tmp_path / "m-BPW_6.gguf").stat().st_size / job.parameters
    assert 5.9 < bits <= 6.0


def test_what_cannot_fit_says_the_least_there_is(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match=r"FIT_100KB: this model takes at least \d{3},\d{3} bytes"):
        quantize(str(model), tmp_path / "out", fit_bytes=100_000, name="m")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_stops_the_plan(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    broken = weights(Shape(), tied=False)[name].to(DTYPES["BF16"])
    broken[3, 5] = float("nan")
    model = write_checkpoint(tmp_path / "model", edit={name: broken})
    with pytest.raises(TensorError, match=r"up_proj.*nan at row 3, column 5"):
        quantize(str(model), tmp_path / "out", fit_bytes=10**6, dry_run=True)


def test_the_choice_is_the_best_there_is() -> None:
    draw = random.Random(7)
    for _ in range(20):
        table = {
            f"t{i}": [
                Candidate(Choice(str(k)), draw.randrange(32, 4096, 32), draw.random() / (k + 1))
                for k in range(3)
            ]
            for i in range(6)
        }
        rows = list(itertools.product(*table.values()))
        limit = sorted(sum(c.size_bytes for c in row) for row in rows)[len(rows) // 3]
        fitting = [row for row in rows if sum(c.size_bytes for c in row) <= limit]
        best = min(sum(c.error for c in row) for row in fitting)
        chosen = choose_to_fit(table, limit)
        assert sum(c.size_bytes for c in chosen.values()) <= limit
        assert sum(c.error for c in chosen.values()) <= best * (1 + 2e-4)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (SizeTarget(5_200_000_000), "FIT_5_2GB"),
        (SizeTarget(int(46.5 * 2**30)), "FIT_46_5GIB"),
        (SizeTarget(700_000_000), "FIT_700MB"),
        (SizeTarget(123_456_789), "FIT_123456789B"),
        (SizeTarget(bits_per_weight=4.6), "BPW_4_6"),
    ],
)
def test_names_say_the_size(target: SizeTarget, name: str) -> None:
    assert target.name == name
