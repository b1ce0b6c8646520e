"""Every family: its GGUF holds the checkpoint's values, llama.cpp loads it and answers alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.checkpoint import Checkpoint
from convert.families import family_of
from convert.gguf_reader import read_gguf
from convert.job import convert
from convert.output_tensor import HeadInterleave
from tests.families import CONFIGS, write_family
from tests.miniature import write_tokenizer

VOCABULARY = 320


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    write_tokenizer(folder)
    return folder


def converted(tmp_path: Path, kind: str, vocabulary: Path) -> tuple[Path, Path]:
    model = write_family(tmp_path / kind, kind, vocabulary, vocab_size=VOCABULARY, shards=2)
    convert(str(model), tmp_path, ["BF16"], name="mini")
    return model, tmp_path / "mini-BF16.gguf"


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_checkpoint_comes_back_from_its_gguf(
    tmp_path: Path, kind: str, vocabulary: Path
) -> None:
    model, gguf = converted(tmp_path, kind, vocabulary)
    file = read_gguf(gguf)
    with Checkpoint.open(model) as checkpoint:
        spec = checkpoint.spec
        found = family_of(spec).recognise(spec, checkpoint.tensors)
        used = set()
        for tensor in found:
            name = tensor.gguf_name
            assert name is not None
            used.add(name)
            stored = file.tensors[name]
            raw = np.frombuffer(
                file.read(name), dtype="<f4" if stored.ggml_type == "F32" else "<u2"
            ).reshape(stored.shape)
            if tensor.expert is not None:
                raw = raw[tensor.expert]
            if tensor.rule.interleave:
                order = HeadInterleave(spec.head_dim).order(raw.shape[0])
                raw = raw[np.argsort(order)]
            source = checkpoint.read_tensor(tensor.info.name)
            if stored.ggml_type == "F32":  # vectors and the router are widened, exactly
                source = (source.astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(raw.reshape(source.shape), source, name)
        assert used == set(file.tensors) - {"rope_freqs.weight"}


@pytest.mark.parametrize("kind", CONFIGS)
def test_llama_cpp_loads_and_answers(tmp_path: Path, kind: str, vocabulary: Path) -> None:
    from llama_cpp import Llama

    _, gguf = converted(tmp_path, kind, vocabulary)
    llama = Llama(str(gguf), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    llama.eval([257, 10, 20, 30])
    assert np.isfinite(llama.scores[:4]).all()
    llama.close()


@pytest.mark.parametrize("kind", ["llama3", "mixtral", "qwen3", "seed_oss"])
def test_llama_cpp_computes_what_transformers_computes(
    tmp_path: Path, kind: str, vocabulary: Path
) -> None:
    """A wrong row order, a lost bias or norm, or rope factors left out would all show here."""
    import torch
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM

    model = write_family(tmp_path / kind, kind, vocabulary, vocab_size=VOCABULARY, dtype="F32")
    convert(str(model), tmp_path, ["F32"], name="mini")
    ids = [257, *range(5, 35)]
    llama = Llama(
        str(tmp_path / "mini-F32.gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True
    )
    llama.eval(ids)
    theirs = np.array(llama.scores[: len(ids)])
    llama.close()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        ours = reference(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(theirs - ours).max() < 2e-3 * np.abs(ours).max()
