"""Any value anywhere in any JSON file of a checkpoint: read, or refused as bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.errors import HermesQuantError
from convert.inspection import inspect
from quantize.job import quantize
from tests.convert.refusal import TARGETS

INDEX = "model.safetensors.index.json"
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 600),
        st.sampled_from([2**31, 2**63, -(2**70), 10**400, 1e308, -1e-308, 1e-30]),
        st.floats(allow_nan=True),
        st.text(max_size=5),
        st.sampled_from(["llama3", "default", "LlamaForCausalLM", "\ud800", "\x00"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FUZZED = ("config.json", "generation_config.json", INDEX, "tokenizer.json", "tokenizer_config.json")


def places(value: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Paths to some of the values inside a JSON document, first entries of long lists only."""
    inner: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())[:25]
    elif isinstance(value, list):
        inner = list(enumerate(value))[:4]
    return [at, *(place for key, entry in inner for place in places(entry, (*at, key)))]


@settings(max_examples=400, deadline=None)
@given(data=st.data(), file=st.sampled_from(FUZZED), value=json_values)
def test_no_json_file_can_cause_an_error_of_another_kind(
    miniature: Path,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    file: str,
    value: object,
) -> None:
    source = tmp_path_factory.getbasetemp() / "fuzzed"
    if not source.exists():
        shutil.copytree(miniature, source)
    original = (miniature / file).read_text()
    content = json.loads(original)
    *parents, last = ("", *data.draw(st.sampled_from(places(content)[1:])))
    inside: Any = content
    for key in parents[1:]:
        inside = inside[key]
    inside[last] = value
    (source / file).write_text(json.dumps(content))
    try:
        quantize(str(source), source.parent / "out", TARGETS, dry_run=True)
        inspect(str(source))
    except HermesQuantError:
        pass
    finally:
        (source / file).write_text(original)
